module restclient

go 1.25
