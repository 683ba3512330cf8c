package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"time"
)

// What a Marble has before it is activated.
type identity struct {
	certificate tls.Certificate
	csr         []byte
}

var identities []identity

func newIdentity(c *command) (reply, error) {
	curves := map[string]elliptic.Curve{"": elliptic.P384(), "P-256": elliptic.P256(), "P-521": elliptic.P521()}
	key, err := ecdsa.GenerateKey(curves[c.Curve], rand.Reader)
	if err != nil {
		return nil, err
	}
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, text := range c.IPs {
		ips = append(ips, net.ParseIP(text))
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "MarbleRun Marble"},
		NotBefore:             time.Now(),
		NotAfter:              time.Now().Add(1<<63 - 1),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		DNSNames:              c.DNS,
		IPAddresses:           ips,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: c.DNS, IPAddresses: ips}, key)
	if err != nil {
		return nil, err
	}
	identities = append(identities, identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, csr})
	return reply{"identity": len(identities) - 1, "certificate": hex.EncodeToString(der)}, nil
}

// clientConfig is what the command says about its side of a TLS connection.
func clientConfig(c *command) (*tls.Config, error) {
	config := &tls.Config{
		InsecureSkipVerify: true,
		MinVersion:         c.Min,
		MaxVersion:         c.Max,
		CipherSuites:       c.Suites,
		NextProtos:         c.ALPN,
	}
	for _, curve := range c.Curves {
		config.CurvePreferences = append(config.CurvePreferences, tls.CurveID(curve))
	}
	if c.Identity != nil {
		if *c.Identity < 0 || *c.Identity >= len(identities) {
			return nil, fmt.Errorf("no identity %d", *c.Identity)
		}
		certificate := identities[*c.Identity].certificate
		for _, text := range c.Extra {
			der, err := hex.DecodeString(text)
			if err != nil {
				return nil, err
			}
			certificate.Certificate = append(certificate.Certificate[:len(certificate.Certificate):len(certificate.Certificate)], der)
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return config, nil
}
