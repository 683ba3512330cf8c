// Command meshclient is an outside view of a Coordinator: a stock Marble's gRPC stack, Go's TLS, Go's HTTP client and
// Go's X.509. It reads one JSON command a line and answers each with one JSON object a line.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
)

type command struct {
	Op string `json:"op"`

	Target   string `json:"target"`
	Identity *int   `json:"identity"`

	// identity
	DNS   []string `json:"dns"`
	IPs   []string `json:"ips"`
	Curve string   `json:"curve"`

	// activate
	Quote     string `json:"quote"`
	Type      string `json:"type"`
	UUID      string `json:"uuid"`
	CSR       string `json:"csr"`
	Path      string `json:"path"`
	Timeout   int    `json:"timeout_ms"`
	Compress  bool   `json:"compress"`
	Padding   int    `json:"padding"`
	NoMessage bool   `json:"no_message"`

	// tls
	Min    uint16   `json:"min"`
	Max    uint16   `json:"max"`
	Suites []uint16 `json:"suites"`
	Curves []uint16 `json:"curves"`
	ALPN   []string `json:"alpn"`
	Extra  []string `json:"extra_certs"`

	// rest
	URL    string `json:"url"`
	Method string `json:"method"`
	Body   string `json:"body"`
	HTTP2  bool   `json:"http2"`

	// x509
	Leaf          string `json:"leaf"`
	Intermediates string `json:"intermediates"`
	Roots         string `json:"roots"`
	Name          string `json:"name"`
}

type reply map[string]any

func main() {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var c command
		if err := json.Unmarshal(line, &c); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		if err := out.Encode(answer(&c)); err != nil {
			return
		}
	}
}

func answer(c *command) (r reply) {
	operations := map[string]func(*command) (reply, error){
		"identity": newIdentity,
		"activate": activate,
		"tls":      handshake,
		"rest":     rest,
		"x509":     inspect,
	}
	operation, known := operations[c.Op]
	if !known {
		return reply{"error": "unknown op " + c.Op}
	}
	r, err := operation(c)
	if err != nil {
		return reply{"error": err.Error()}
	}
	return r
}
