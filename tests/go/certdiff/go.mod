module certdiff

// From this version on key ids are SHA-256, as the reference has them (protocol, section 13.3).
go 1.25
