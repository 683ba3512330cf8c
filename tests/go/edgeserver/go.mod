module edgeserver

go 1.25
