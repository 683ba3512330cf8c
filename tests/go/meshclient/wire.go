package main

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"time"
)

// handshake connects and tells what was agreed on. With TLS 1.3 a server refuses a client's certificate, or its
// absence, only after the client is done, so one byte is waited for.
func handshake(c *command) (reply, error) {
	config, err := clientConfig(c)
	if err != nil {
		return nil, err
	}
	var request *tls.CertificateRequestInfo
	certificates := config.Certificates
	config.Certificates = nil
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		request = info
		if len(certificates) == 0 {
			return &tls.Certificate{}, nil
		}
		return &certificates[0], nil
	}
	plain, err := net.DialTimeout("tcp", c.Target, 5*time.Second)
	if err != nil {
		return nil, err
	}
	connection := tls.Client(plain, config)
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if err := connection.Handshake(); err != nil {
		return nil, err
	}
	if c.Identity == nil || len(c.ALPN) > 0 {
		if err := connection.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			return nil, err
		}
		if _, err := connection.Read(make([]byte, 1)); err != nil && !isTimeout(err) {
			return nil, err
		}
	}
	state := connection.ConnectionState()
	result := reply{
		"version":     state.Version,
		"suite":       tls.CipherSuiteName(state.CipherSuite),
		"curve":       state.CurveID.String(),
		"alpn":        state.NegotiatedProtocol,
		"certificate": hex.EncodeToString(state.PeerCertificates[0].Raw),
		"chain":       len(state.PeerCertificates),
		"requested":   request != nil,
	}
	if request != nil {
		result["authorities"] = len(request.AcceptableCAs)
	}
	return result, nil
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}

func rest(c *command) (reply, error) {
	config, err := clientConfig(c)
	if err != nil {
		return nil, err
	}
	body, err := hex.DecodeString(c.Body)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: c.HTTP2}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequest(c.Method, c.URL, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	return reply{
		"status":   response.StatusCode,
		"protocol": response.Proto,
		"headers":  response.Header,
		"body":     string(content),
	}, nil
}
