package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// session is one verified (or knowingly unverified) way to a Coordinator.
type session struct {
	client    *http.Client
	transport *http.Transport
	host      string
	newest    string
	protocol  string
}

// refusal is any status but 200.
type refusal struct {
	code            int
	status, message string
	data            string
	request         string
}

func (r *refusal) Error() string {
	if r.code == http.StatusUnauthorized {
		return fmt.Sprintf("%s: authorizing user: %s", r.request, r.message)
	}
	return fmt.Sprintf("%s: %d %s: %s", r.request, r.code, r.status, r.message)
}

func connect(c *command) (*session, error) {
	config := &tls.Config{MinVersion: c.Min, MaxVersion: c.Max}
	for _, curve := range c.Curves {
		config.CurvePreferences = append(config.CurvePreferences, tls.CurveID(curve))
	}
	if c.Root == "" {
		config.InsecureSkipVerify = true
	} else {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(c.Root)) {
			return nil, errors.New("the trust anchor is not a certificate")
		}
	}
	if c.Certificate != "" {
		pair, err := tls.X509KeyPair([]byte(c.Certificate), []byte(c.Key))
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: c.HTTP2}
	newest := c.Newest
	if newest == "" {
		newest = "/api/v2"
	}
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	return &session{client: client, transport: transport, host: c.Endpoint, newest: newest}, nil
}

// do sends one request; what comes back is the answer's data: "" for null, a string without its quotes, else JSON.
func (s *session) do(method, path string, query url.Values, kind string, body []byte) (string, error) {
	target := url.URL{Scheme: "https", Host: s.host, Path: path, RawQuery: query.Encode()}
	var content io.Reader = http.NoBody
	if body != nil {
		content = bytes.NewReader(body)
	}
	request, err := http.NewRequest(method, target.String(), content)
	if err != nil {
		return "", err
	}
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	s.protocol = response.Proto
	var envelope struct {
		Status  string          `json:"status"`
		Data    json.RawMessage `json:"data"`
		Message string          `json:"message"`
	}
	if err := json.Unmarshal(text, &envelope); err != nil {
		return "", fmt.Errorf("%s %s answered %d without an envelope: %w", method, path, response.StatusCode, err)
	}
	data, err := extract(envelope.Data)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", &refusal{response.StatusCode, envelope.Status, envelope.Message, data, method + " " + target.Path}
	}
	return data, nil
}

func extract(data json.RawMessage) (string, error) {
	if len(data) == 0 || string(data) == "null" {
		return "", nil
	}
	if data[0] != '"' {
		return string(data), nil
	}
	var text string
	err := json.Unmarshal(data, &text)
	return text, err
}

func (s *session) get(path string, query url.Values) (string, error) {
	return s.do(http.MethodGet, path, query, "", nil)
}

// post sends v as JSON; nothing at all for nil.
func (s *session) post(path string, v any) (string, error) {
	if v == nil {
		return s.do(http.MethodPost, path, nil, "", nil)
	}
	body, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	return s.do(http.MethodPost, path, nil, "application/json", body)
}

func (s *session) postText(path string, body []byte) (string, error) {
	return s.do(http.MethodPost, path, nil, "text/plain", body)
}

// both tries the newest API, and the first one only if the server does not know the newest.
func (s *session) both(newest, first func() (reply, error)) (reply, error) {
	defer s.transport.CloseIdleConnections()
	result, err := newest()
	version := 2
	var said *refusal
	if errors.As(err, &said) && said.code == http.StatusMethodNotAllowed && first != nil {
		result, err = first()
		version = 1
	}
	if err != nil {
		return nil, err
	}
	if result == nil {
		result = reply{}
	}
	result["api"], result["protocol"] = version, s.protocol
	return result, nil
}

// decode fills into from an answer's data. encoding/json does not mind the case of a name; stricter clients do, so the
// names as they were sent are told too.
func decode(data string, into any) ([]string, error) {
	if err := json.Unmarshal([]byte(data), into); err != nil {
		return nil, err
	}
	var sent map[string]json.RawMessage
	if err := json.Unmarshal([]byte(data), &sent); err != nil {
		return nil, err
	}
	names := make([]string, 0, len(sent))
	for name := range sent {
		names = append(names, name)
	}
	return names, nil
}

// ask sends any request and tells what is in the envelope.
func ask(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	defer s.transport.CloseIdleConnections()
	data, err := s.do(c.Method, c.Path, nil, "", c.Body)
	if err != nil {
		return nil, err
	}
	return reply{"data": data, "protocol": s.protocol}, nil
}
