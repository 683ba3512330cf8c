// Tmpldiff tells what Go's own text/template makes of templates over the sample data.
//
// It reads lines "<files|env> <base64 of the template>" and answers each with one line of JSON:
// {"ok": true, "value": base64 of the output} or {"ok": false, "value": error text}.
//
// With -golden FILE it computes the results of a table of cases anew and writes the table back.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"text/template"
	"unicode/utf8"

	"tmpldiff/manifest"
)

// content is what hex, base64 and raw encode.
func content(value any) ([]byte, error) {
	var data []byte
	switch v := value.(type) {
	case manifest.Secret:
		data = v.Public
	case manifest.Certificate:
		data = v.Raw
	case manifest.PrivateKey:
		data = v
	case manifest.PublicKey:
		data = v
	case []byte:
		data = v
	default:
		return nil, fmt.Errorf("no content in %T", value)
	}
	if len(data) == 0 {
		return nil, errors.New("empty")
	}
	return data, nil
}

func toHex(value any) (string, error) {
	data, err := content(value)
	return hex.EncodeToString(data), err
}

func toBase64(value any) (string, error) {
	data, err := content(value)
	return base64.StdEncoding.EncodeToString(data), err
}

func toRaw(value any) (string, error) {
	data, err := content(value)
	return string(data), err
}

func toPEM(value any) (string, error) {
	label := ""
	switch value.(type) {
	case manifest.Certificate:
		label = "CERTIFICATE"
	case manifest.PublicKey:
		label = "PUBLIC KEY"
	case manifest.PrivateKey:
		label = "PRIVATE KEY"
	default:
		return "", fmt.Errorf("no PEM of %T", value)
	}
	data, err := content(value)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: data})), nil
}

func toString(value any) (string, error) {
	secret, ok := value.(manifest.Secret)
	if !ok || secret.Type != "plain" {
		return "", fmt.Errorf("no text in %T", value)
	}
	if len(secret.Public) == 0 || bytes.IndexByte(secret.Public, 0) >= 0 {
		return "", errors.New("empty or NUL")
	}
	return string(secret.Public), nil
}

var functions = map[string]template.FuncMap{
	"files": {"hex": toHex, "base64": toBase64, "pem": toPEM, "raw": toRaw},
	"env":   {"hex": toHex, "base64": toBase64, "pem": toPEM, "string": toString},
}

// render is the question all of this is about.
func render(set string, text []byte, data any) ([]byte, error) {
	// The name cannot be written in a template by accident.
	parsed, err := template.New("the text itself").Funcs(functions[set]).Parse(string(text))
	if err != nil {
		return nil, err
	}
	var output bytes.Buffer
	err = parsed.Execute(&output, data)
	return output.Bytes(), err
}

// testCase is a row of the table. Text that is not UTF-8 is written in base64.
type testCase struct {
	About          string  `json:"about,omitempty"`
	Functions      string  `json:"functions"`
	Template       *string `json:"template,omitempty"`
	TemplateBase64 []byte  `json:"template_base64,omitempty"`
	Output         *string `json:"output,omitempty"`
	OutputBase64   []byte  `json:"output_base64,omitempty"`
	Error          bool    `json:"error,omitempty"`
}

func (c *testCase) compute(data any) {
	text := c.TemplateBase64
	if c.Template != nil {
		text = []byte(*c.Template)
	}
	c.Output, c.OutputBase64, c.Error = nil, nil, false
	switch output, err := render(c.Functions, text, data); {
	case err != nil:
		c.Error = true
	case utf8.Valid(output):
		printed := string(output)
		c.Output = &printed
	default:
		c.OutputBase64 = output
	}
}

func regenerate(path string, data any) error {
	stored, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var cases []testCase
	if err := json.Unmarshal(stored, &cases); err != nil {
		return err
	}
	var lines []string
	for i := range cases {
		cases[i].compute(data)
		var line bytes.Buffer
		encoder := json.NewEncoder(&line)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(cases[i]); err != nil {
			return err
		}
		lines = append(lines, strings.TrimSpace(line.String()))
	}
	return os.WriteFile(path, []byte("[\n"+strings.Join(lines, ",\n")+"\n]\n"), 0o644)
}

func answer(data any) error {
	input := bufio.NewReaderSize(os.Stdin, 1<<20)
	output := bufio.NewWriter(os.Stdout)
	for {
		line, err := input.ReadString('\n')
		if err != nil {
			return nil
		}
		set, encoded, _ := strings.Cut(strings.TrimSpace(line), " ")
		text, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return err
		}
		reply := map[string]any{}
		if printed, err := render(set, text, data); err != nil {
			reply["ok"], reply["value"] = false, err.Error()
		} else {
			reply["ok"], reply["value"] = true, base64.StdEncoding.EncodeToString(printed)
		}
		if err := json.NewEncoder(output).Encode(reply); err != nil {
			return err
		}
		if err := output.Flush(); err != nil {
			return err
		}
	}
}

func main() {
	golden := flag.String("golden", "", "table of cases to compute anew")
	flag.Parse()
	data := manifest.Sample()
	run := answer
	if *golden != "" {
		run = func(data any) error { return regenerate(*golden, data) }
	}
	if err := run(data); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
