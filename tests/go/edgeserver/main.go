// Go's own HTTPS server with fixed answers, so that what our edge makes of a request can be compared with it.
//
// Standard input: a JSON list of routes, then nothing until the end of the process is wanted. Standard output: the
// address. Whatever has no route is answered with the fallback, as the client API does it with unknown paths.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"
)

type route struct {
	Path    string
	Method  string
	Status  int
	Headers map[string]string
	Body    string
	// Reads says whether the handler reads the request's body before it answers; if that fails it says 400.
	Reads bool
}

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func answer(w http.ResponseWriter, r *http.Request, given route) {
	if given.Reads {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
	}
	for name, value := range given.Headers {
		w.Header().Set(name, value)
	}
	w.WriteHeader(given.Status)
	io.WriteString(w, given.Body)
}

func main() {
	input := bufio.NewReader(os.Stdin)
	var routes []route
	decoder := json.NewDecoder(input)
	if err := decoder.Decode(&routes); err != nil {
		log.Fatal(err)
	}
	table := map[string]map[string]route{}
	var fallback route
	for _, given := range routes {
		if given.Path == "" {
			fallback = given
			continue
		}
		if table[given.Path] == nil {
			table[given.Path] = map[string]route{}
		}
		table[given.Path][given.Method] = given
	}
	mux := http.NewServeMux()
	for path, methods := range table {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			given, ok := methods[r.Method]
			if !ok {
				given = fallback
			}
			answer(w, r, given)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { answer(w, r, fallback) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Handler:  mux,
		ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{certificate()}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12,
		},
	}
	fmt.Println(listener.Addr())
	go func() {
		io.Copy(io.Discard, io.MultiReader(decoder.Buffered(), input))
		os.Exit(0)
	}()
	log.Fatal(server.ServeTLS(listener, "", ""))
}
