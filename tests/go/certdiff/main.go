// Certdiff issues, reads and verifies certificates with Go's own crypto/x509, so that ours can be compared.
//
// It reads lines "<mode> <base64 of a JSON question>" and answers each with one line of JSON:
// {"ok": ..., "value": ...}, the value being the reason when not ok. What a profile says is written down here once more, in terms of Go's template fields;
// everything else (order, criticality, string types, refusals) follows from Go, which is what we want to know.
package main

import (
	"bufio"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net"
	"os"
	"strings"
	"time"

	"crypto"
	"crypto/rand"
)

type question struct {
	Template      json.RawMessage // manifest's Cert object, for "secret"
	Stored        []byte          // certificate to issue again, for "secret"
	CSR           []byte
	MarbleType    string
	UUID          string
	CommonName    string
	DNSNames      []string
	IPAddresses   []net.IP
	Issuer        []byte // certificate DER; empty: self-signed
	Key           []byte // PKCS#8 of the signer
	PublicKey     []byte // PKIX of the subject
	Serial        []byte
	At            time.Time
	NotAfter      time.Time
	Leaf          []byte
	Intermediates [][]byte
	Roots         [][]byte
	Host          string
	Client        bool
}

type request struct {
	Country, OrganizationalUnit, Locality, Province, StreetAddress, PostalCode []string
	SerialNumber                                                               string
	DNSNames                                                                   []string
	IPAddresses                                                                []string
}

func serverAndClient() []x509.ExtKeyUsage {
	return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
}

func loopback() []net.IP {
	return []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
}

func (q *question) sign(template *x509.Certificate) (any, error) {
	key, err := x509.ParsePKCS8PrivateKey(q.Key)
	if err != nil {
		return nil, err
	}
	public, err := x509.ParsePKIXPublicKey(q.PublicKey)
	if err != nil {
		return nil, err
	}
	parent := template
	if len(q.Issuer) > 0 {
		if parent, err = x509.ParseCertificate(q.Issuer); err != nil {
			return nil, err
		}
	}
	template.SerialNumber = new(big.Int).SetBytes(q.Serial)
	template.NotBefore = q.At
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key.(crypto.Signer))
	if err != nil {
		return nil, err
	}
	_, err = x509.ParseCertificate(der)
	return der, err
}

func (q *question) authority() (any, error) {
	return q.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: q.CommonName},
		NotAfter:    q.At.Add(math.MaxInt64),
		DNSNames:    q.DNSNames,
		IPAddresses: append(loopback(), q.IPAddresses...),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: serverAndClient(),
		IsCA:        true,
	})
}

func (q *question) tls() (any, error) {
	return q.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: q.CommonName},
		NotAfter:    q.At.Add(math.MaxInt64),
		DNSNames:    q.DNSNames,
		IPAddresses: append(loopback(), q.IPAddresses...),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement,
		ExtKeyUsage: serverAndClient(),
	})
}

func (q *question) marble() (any, error) {
	csr, err := checkedRequest(q.CSR)
	if err != nil {
		return nil, err
	}
	subject := csr.Subject
	subject.CommonName, subject.Organization = q.UUID, nil
	return q.sign(&x509.Certificate{
		Subject:     subject,
		NotAfter:    q.At.Add(math.MaxInt64),
		DNSNames:    csr.DNSNames,
		IPAddresses: csr.IPAddresses,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement,
		ExtKeyUsage: serverAndClient(),
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 3, 9903, 2, 1}, Value: []byte(q.MarbleType)},
		},
	})
}

func (q *question) secret() (any, error) {
	template := &x509.Certificate{}
	if len(q.Stored) > 0 {
		stored, err := x509.ParseCertificate(q.Stored)
		if err != nil {
			return nil, err
		}
		template = stored
	} else if err := json.Unmarshal(q.Template, template); err != nil {
		return nil, err
	}
	if template.DNSNames == nil {
		template.DNSNames = []string{"localhost"}
	}
	if template.IPAddresses == nil {
		template.IPAddresses = loopback()
	}
	if template.KeyUsage == 0 {
		template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign
	}
	if template.ExtKeyUsage == nil {
		template.ExtKeyUsage = serverAndClient()
	}
	if template.Subject.CommonName == "" {
		template.Subject.CommonName = "MarbleRun Generated Certificate"
		if len(template.DNSNames) == 1 {
			template.Subject.CommonName = template.DNSNames[0]
		}
	}
	template.NotAfter = q.NotAfter
	return q.sign(template)
}

func checkedRequest(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	return csr, csr.CheckSignature()
}

func (q *question) request() (any, error) {
	csr, err := checkedRequest(q.CSR)
	if err != nil {
		return nil, err
	}
	addresses := []string{}
	for _, ip := range csr.IPAddresses {
		addresses = append(addresses, ip.String())
	}
	s := csr.Subject
	return request{
		s.Country, s.OrganizationalUnit, s.Locality, s.Province, s.StreetAddress, s.PostalCode, s.SerialNumber,
		csr.DNSNames, addresses,
	}, nil
}

func pool(certificates [][]byte) (*x509.CertPool, error) {
	found := x509.NewCertPool()
	for _, der := range certificates {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		found.AddCert(certificate)
	}
	return found, nil
}

func (q *question) verify() (any, error) {
	leaf, err := x509.ParseCertificate(q.Leaf)
	if err != nil {
		return nil, err
	}
	roots, err := pool(q.Roots)
	if err != nil {
		return nil, err
	}
	between, err := pool(q.Intermediates)
	if err != nil {
		return nil, err
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: q.At, DNSName: q.Host}
	if q.Client {
		options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	chains, err := leaf.Verify(options)
	if err != nil {
		return nil, err
	}
	return len(chains[0]), nil
}

func answer(line string) (any, error) {
	mode, packed, _ := strings.Cut(line, " ")
	document, err := base64.StdEncoding.DecodeString(packed)
	if err != nil {
		panic(err)
	}
	var q question
	if err := json.Unmarshal(document, &q); err != nil {
		panic(err)
	}
	switch mode {
	case "authority":
		return q.authority()
	case "tls":
		return q.tls()
	case "marble":
		return q.marble()
	case "secret":
		return q.secret()
	case "request":
		return q.request()
	case "verify":
		return q.verify()
	}
	return nil, errors.New("unknown mode")
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		reply := map[string]any{"ok": true}
		if value, err := answer(lines.Text()); err != nil {
			reply["ok"], reply["value"] = false, err.Error()
		} else {
			reply["value"] = value
		}
		encoded, err := json.Marshal(reply)
		if err != nil {
			panic(err)
		}
		fmt.Println(string(encoded))
	}
}
