module jsondiff

go 1.24
