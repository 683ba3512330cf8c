"""Is it acceptable? Claims against packages and infrastructures; users against roles. Pure."""
