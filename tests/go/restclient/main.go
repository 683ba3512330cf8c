// Command restclient is a stock user of a Coordinator: Go's TLS in FIPS mode, Go's net/http, encoding/json and
// crypto/x509, and the rules of the reference's client library (cli-marble-k8s, section 2). It reads one JSON command a
// line and answers each with one JSON object a line; a failure is in "error", with what the server said beside it.
package main

import (
	"bufio"
	"crypto/fips140"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

type command struct {
	Op string `json:"op"`

	// The connection.
	Endpoint    string   `json:"endpoint"`
	Root        string   `json:"root"`        // PEM, the only trust anchor; empty: nothing is verified
	Certificate string   `json:"certificate"` // PEM
	Key         string   `json:"key"`         // PEM
	Min         uint16   `json:"min"`
	Max         uint16   `json:"max"`
	Curves      []uint16 `json:"curves"`
	HTTP2       bool     `json:"http2"`
	Newest      string   `json:"newest"` // where the newest API is that this client knows

	// What is asked.
	Method    string                `json:"method"`
	Path      string                `json:"path"`
	Body      []byte                `json:"body"`
	Nonce     []byte                `json:"nonce"`
	Manifest  []byte                `json:"manifest"`
	Names     []string              `json:"names"`
	Secrets   map[string]userSecret `json:"secrets"`
	Bare      bool                  `json:"bare"` // leave out what an uploaded secret does not have
	Name      string                `json:"name"`
	Value     uint64                `json:"value"`
	Quote     []byte                `json:"quote"`
	Encrypted []byte                `json:"encrypted"` // a recovery secret, for RecoveryKey
	Recovery  string                `json:"recovery_key"`
	Ephemeral bool                  `json:"ephemeral"` // encrypt it for the Coordinator's own key

	// x509
	Leaf          string `json:"leaf"`
	Intermediates string `json:"intermediates"`
	Roots         string `json:"roots"`
}

type reply map[string]any

var operations = map[string]func(*command) (reply, error){
	"mode":        func(*command) (reply, error) { return reply{"fips": fips140.Enabled()}, nil },
	"ask":         ask,
	"status":      getStatus,
	"attest":      attest,
	"set":         setManifest,
	"get":         getManifest,
	"log":         getLog,
	"update":      applyUpdate,
	"pending":     getPending,
	"acknowledge": acknowledgeUpdate,
	"cancel":      cancelUpdate,
	"secrets":     getSecrets,
	"upload":      setSecrets,
	"recover":     recoverState,
	"sign":        signQuote,
	"count":       setCounter,
	"x509":        verifyCertificate,
}

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

func answer(c *command) reply {
	operation, known := operations[c.Op]
	if !known {
		return reply{"error": "unknown op " + c.Op}
	}
	result, err := operation(c)
	if err == nil {
		return result
	}
	failed := reply{"error": err.Error()}
	var said *refusal
	if errors.As(err, &said) {
		failed["code"], failed["status"], failed["message"], failed["data"] = said.code, said.status, said.message, said.data
	}
	return failed
}
