module tmpldiff

go 1.24
