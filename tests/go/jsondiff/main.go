// Jsondiff tells what Go's own encoding/json, encoding/pem, net/url and crypto/x509 make of documents.
//
// It reads lines "<mode> <base64 of the document>" and answers each with one line of JSON:
// {"ok": false} or {"ok": true, "value": ...}. The structures below carry the field names of the manifest and nothing
// else; what is not a field name follows from Go's decoder, which is what we want to know.
package main

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

type pkg struct {
	Debug                                   bool
	UniqueID, SignerID                      string
	ProductID                               *uint64
	SecurityVersion                         *uint
	AcceptedTCBStatuses, AcceptedAdvisories []string
}

type infra struct {
	CPUSVN        []byte
	QESVN, PCESVN *uint16
	RootCA        []byte
}

type file struct {
	data       []byte
	encoding   string
	noTemplate bool
}

func (f *file) UnmarshalJSON(raw []byte) error {
	switch raw[0] {
	case '"':
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return err
		}
		*f = file{[]byte(text), "string", false}
		return nil
	case '{':
	default:
		return errors.New("neither string nor object")
	}
	var object struct {
		Data, Encoding string
		NoTemplates    bool
	}
	if err := json.Unmarshal(raw, &object); err != nil {
		return err
	}
	var err error
	*f = file{[]byte(object.Data), object.Encoding, object.NoTemplates}
	switch strings.ToLower(object.Encoding) {
	case "", "string":
	case "base64":
		f.data, err = base64.StdEncoding.DecodeString(object.Data)
	case "hex":
		f.data, err = hex.DecodeString(object.Data)
	default:
		err = errors.New("encoding")
	}
	return err
}

func (f file) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{hex.EncodeToString(f.data), f.encoding, f.noTemplate})
}

type cert struct {
	tmpl x509.Certificate
	der  []byte
}

func (c *cert) UnmarshalJSON(raw []byte) error {
	if raw[0] != '"' {
		if raw[0] == '{' {
			c.der = nil
		}
		return json.Unmarshal(raw, &c.tmpl)
	}
	var der []byte
	if err := json.Unmarshal(raw, &der); err != nil {
		return nil
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	*c = cert{der: parsed.Raw}
	return nil
}

func network(n *net.IPNet) string {
	if n == nil {
		return "invalid"
	}
	masked := n.IP.Mask(n.Mask)
	ones, _ := n.Mask.Size()
	if len(n.Mask) != 4 && len(n.Mask) != 16 || masked == nil || ones == 0 && !allZero(n.Mask) {
		return "invalid"
	}
	return hex.EncodeToString(masked) + hex.EncodeToString(n.Mask)
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func networks(list []*net.IPNet) []string {
	out := []string{}
	for _, n := range list {
		out = append(out, network(n))
	}
	return out
}

func (c cert) MarshalJSON() ([]byte, error) {
	if c.der != nil {
		return json.Marshal(hex.EncodeToString(c.der))
	}
	t := c.tmpl
	extra := [][]string{}
	for _, name := range t.Subject.ExtraNames {
		text, ok := name.Value.(string)
		if !ok {
			return nil, errors.New("not text")
		}
		extra = append(extra, []string{name.Type.String(), text})
	}
	var ips, uris, eku, unknown any
	if t.IPAddresses != nil {
		list := []string{}
		for _, ip := range t.IPAddresses {
			if ip == nil {
				list = append(list, "")
			} else {
				list = append(list, ip.String())
			}
		}
		ips = list
	}
	if t.URIs != nil {
		list := []string{}
		for _, u := range t.URIs {
			if u == nil {
				list = append(list, "")
			} else {
				list = append(list, u.String())
			}
		}
		uris = list
	}
	if t.ExtKeyUsage != nil {
		eku = t.ExtKeyUsage
	}
	if t.UnknownExtKeyUsage != nil {
		list := []string{}
		for _, oid := range t.UnknownExtKeyUsage {
			list = append(list, oid.String())
		}
		unknown = list
	}
	notAfter := any(nil)
	if !t.NotAfter.IsZero() {
		notAfter = t.NotAfter.UTC().Format("2006-01-02T15:04:05.000000")
		if t.NotAfter.UTC().Year() < 401 {
			notAfter = "long past"
		} else if t.NotAfter.UTC().Year() > 9999 {
			notAfter = "after year 9999"
		}
	}
	policies := []string{}
	for _, oid := range t.Policies {
		policies = append(policies, oid.String())
	}
	extensions := [][]any{}
	for _, e := range t.ExtraExtensions {
		extensions = append(extensions, []any{e.Id.String(), e.Critical, hex.EncodeToString(e.Value)})
	}
	s := t.Subject
	return json.Marshal([]any{
		[]any{s.Country, s.Organization, s.OrganizationalUnit, s.Locality, s.Province, s.StreetAddress, s.PostalCode},
		s.SerialNumber, s.CommonName, extra,
		t.DNSNames, t.EmailAddresses, ips, uris, notAfter, int64(t.KeyUsage), eku, unknown,
		t.IsCA, t.MaxPathLen, t.MaxPathLenZero,
		hex.EncodeToString(t.SubjectKeyId), hex.EncodeToString(t.AuthorityKeyId),
		[]any{t.OCSPServer, t.IssuingCertificateURL, t.CRLDistributionPoints},
		t.PermittedDNSDomainsCritical, []any{t.PermittedDNSDomains, t.ExcludedDNSDomains},
		[]any{networks(t.PermittedIPRanges), networks(t.ExcludedIPRanges)},
		[]any{t.PermittedEmailAddresses, t.ExcludedEmailAddresses, t.PermittedURIDomains, t.ExcludedURIDomains},
		policies, extensions, int64(t.SignatureAlgorithm),
	})
}

type entry struct {
	Port, Addr, Cert  string
	DisableClientAuth bool
}

type manifest struct {
	Packages        map[string]pkg
	Infrastructures map[string]infra
	Marbles         map[string]struct {
		Package        string
		MaxActivations uint
		Parameters     struct {
			Files, Env map[string]file
			Argv       []string
		}
		TLS                  []string
		DisableSecretBinding bool
	}
	Users map[string]struct {
		Certificate string
		Roles       []string
	}
	Secrets map[string]struct {
		Type                string
		Size                uint
		Shared, UserDefined bool
		Cert                cert
		ValidFor            uint
		Private, Public     []byte
	}
	RecoveryKeys map[string]string
	Roles        map[string]struct {
		ResourceType           string
		ResourceNames, Actions []string
	}
	TLS    map[string]struct{ Outgoing, Incoming []entry }
	Config struct {
		SealMode                           string
		FeatureGates                       []string
		UpdateThreshold, RecoveryThreshold uint
		RotateRootSecret                   bool
	}
}

type counter struct {
	Name  string `json:"name"`
	Value uint64 `json:"value"`
	Data  []byte `json:"data"`
}

// Signed and unsigned numbers of every size, and the containers whose merging is subtle.
type shapes struct {
	I8    int8
	I64   int64
	U8    uint8
	U16   uint16
	U64   uint64
	Bytes []byte
	List  []string
	Pairs []struct{ A, B string }
	Map   map[string][]string
	Ptr   *struct{ A, B string }
	Any   any
}

func answer(mode string, raw []byte) (any, error) {
	switch mode {
	case "manifest":
		var m manifest
		err := json.Unmarshal(raw, &m)
		return m, err
	case "shapes":
		var s shapes
		err := json.Unmarshal(raw, &s)
		s.Any = nil
		return s, err
	case "first":
		var c counter
		err := json.NewDecoder(bytes.NewReader(raw)).Decode(&c)
		return c, err
	case "pem":
		block, _ := pem.Decode(raw)
		if block == nil {
			return nil, errors.New("no block")
		}
		return []string{block.Type, hex.EncodeToString(block.Bytes)}, nil
	case "certificate":
		certificate, err := x509.ParseCertificate(raw)
		if err != nil {
			return nil, err
		}
		return hex.EncodeToString(certificate.Raw), nil
	case "time":
		var t time.Time
		err := json.Unmarshal(raw, &t)
		return t.UTC().Format("2006-01-02T15:04:05.000000"), err
	case "marshal":
		var v any
		err := json.Unmarshal(raw, &v)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(v)
		return string(text), err
	}
	return nil, fmt.Errorf("mode %q", mode)
}

func main() {
	in := bufio.NewReader(os.Stdin)
	out := bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		mode, coded, _ := strings.Cut(strings.TrimSpace(line), " ")
		raw, err := base64.StdEncoding.DecodeString(coded)
		if err != nil {
			panic(err)
		}
		reply := map[string]any{"ok": false}
		if value, err := answer(mode, raw); err == nil {
			if text, err := json.Marshal(value); err == nil {
				reply = map[string]any{"ok": true, "value": json.RawMessage(text)}
			}
		}
		text, err := json.Marshal(reply)
		if err != nil {
			panic(err)
		}
		out.Write(append(text, '\n'))
		out.Flush()
	}
}
