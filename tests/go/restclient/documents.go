package main

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

func getStatus(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	return s.both(func() (reply, error) {
		data, err := s.get(s.newest+"/status", nil)
		if err != nil {
			return nil, err
		}
		var status struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		}
		names, err := decode(data, &status)
		return reply{"code": status.Code, "message": status.Message, "names": names}, err
	}, func() (reply, error) {
		data, err := s.get("/status", nil)
		if err != nil {
			return nil, err
		}
		var status struct {
			StatusCode    int
			StatusMessage string
		}
		names, err := decode(data, &status)
		return reply{"code": status.StatusCode, "message": status.StatusMessage, "names": names}, err
	})
}

// attest fetches chain and quote without trusting the connection, and says whether the quote is over root and nonce.
func attest(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	query := url.Values{}
	if len(c.Nonce) > 0 {
		query.Set("nonce", base64.URLEncoding.EncodeToString(c.Nonce))
	}
	first := func() (reply, error) {
		data, err := s.get("/quote", nil)
		if err != nil {
			return nil, err
		}
		var sent struct {
			Cert  string
			Quote []byte
		}
		names, err := decode(data, &sent)
		if err != nil {
			return nil, err
		}
		return described(sent.Cert, sent.Quote, nil, names)
	}
	if len(c.Nonce) > 0 {
		first = nil // version 1 has none, so there is nothing to fall back to
	}
	return s.both(func() (reply, error) {
		data, err := s.get(s.newest+"/quote", query)
		if err != nil {
			return nil, err
		}
		var sent struct {
			Cert  string `json:"cert"`
			Quote []byte `json:"quote"`
		}
		names, err := decode(data, &sent)
		if err != nil {
			return nil, err
		}
		return described(sent.Cert, sent.Quote, c.Nonce, names)
	}, first)
}

// Where an SGX quote has the data that its enclave chose: after the OE header (16), the quote's header (48) and 320
// bytes of the report.
const reportDataAt = 16 + 48 + 320

func described(chain string, quote, nonce []byte, names []string) (reply, error) {
	certificates, err := parseChain(chain)
	if err != nil {
		return nil, err
	}
	if len(certificates) != 2 {
		return nil, fmt.Errorf("%d certificates instead of two", len(certificates))
	}
	intermediate, root := certificates[0], certificates[1]
	if err := intermediate.CheckSignatureFrom(root); err != nil {
		return nil, err
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		return nil, err
	}
	expected := sha256.Sum256(append(append([]byte{}, root.Raw...), nonce...))
	bound := len(quote) >= reportDataAt+32 && string(quote[reportDataAt:reportDataAt+32]) == string(expected[:])
	return reply{
		"root": toPEM(root), "intermediate": toPEM(intermediate), "quote": quote, "bound": bound, "names": names,
	}, nil
}

func setManifest(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	parse := func(data string) (reply, error) {
		var sent struct {
			RecoverySecrets map[string][]byte
		}
		names, err := decode(data, &sent)
		return reply{"recovery": sent.RecoverySecrets, "is_object": sent.RecoverySecrets != nil, "names": names}, err
	}
	return s.both(func() (reply, error) {
		data, err := s.post(s.newest+"/manifest", map[string][]byte{"manifest": c.Manifest})
		if err != nil {
			return nil, err
		}
		return parse(data)
	}, func() (reply, error) {
		data, err := s.postText("/manifest", c.Manifest)
		if err != nil || data == "" {
			return nil, err
		}
		return parse(data)
	})
}

func getManifest(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	check := func(manifest, signature []byte, fingerprint string, names []string) (reply, error) {
		roots, err := parseChain(c.Root)
		if err != nil {
			return nil, err
		}
		key, isECDSA := roots[0].PublicKey.(*ecdsa.PublicKey)
		if !isECDSA {
			return nil, errors.New("the root's key is no ECDSA key")
		}
		digest := sha256.Sum256(manifest)
		return reply{
			"manifest": manifest, "is_signed": ecdsa.VerifyASN1(key, digest[:], signature),
			"is_fingerprint": fingerprint == fmt.Sprintf("%x", digest), "names": names,
		}, nil
	}
	return s.both(func() (reply, error) {
		data, err := s.get(s.newest+"/manifest", nil)
		if err != nil {
			return nil, err
		}
		var sent struct {
			Signature   []byte `json:"manifestSignatureRootECDSA"`
			Fingerprint string `json:"manifestFingerprint"`
			Manifest    []byte `json:"manifest"`
		}
		names, err := decode(data, &sent)
		if err != nil {
			return nil, err
		}
		return check(sent.Manifest, sent.Signature, sent.Fingerprint, names)
	}, func() (reply, error) {
		data, err := s.get("/manifest", nil)
		if err != nil {
			return nil, err
		}
		var sent struct {
			ManifestSignatureRootECDSA []byte
			ManifestSignature          string
			Manifest                   []byte
		}
		names, err := decode(data, &sent)
		if err != nil {
			return nil, err
		}
		return check(sent.Manifest, sent.ManifestSignatureRootECDSA, sent.ManifestSignature, names)
	})
}

func getLog(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	return s.both(func() (reply, error) {
		data, err := s.get(s.newest+"/update", nil)
		if err != nil {
			return nil, err
		}
		var sent struct {
			Lines []string `json:"updateLog"`
		}
		names, err := decode(data, &sent)
		return reply{"lines": sent.Lines, "names": names}, err
	}, func() (reply, error) {
		data, err := s.get("/update", nil)
		if err != nil {
			return nil, err
		}
		if !strings.HasSuffix(data, "\n") {
			return nil, errors.New("the log does not end with a line feed")
		}
		return reply{"lines": strings.Split(strings.TrimSuffix(data, "\n"), "\n")}, nil
	})
}

func parseOutcome(data string) (reply, error) {
	var sent struct {
		Missing  int               `json:"missingAcknowledgments"`
		Users    []string          `json:"missingUsers"`
		Recovery map[string][]byte `json:"recoverySecrets"`
		Message  string            `json:"message"`
	}
	names, err := decode(data, &sent)
	return reply{
		"missing": sent.Missing, "users": sent.Users, "recovery": sent.Recovery, "message": sent.Message, "names": names,
	}, err
}

func applyUpdate(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	return s.both(func() (reply, error) {
		data, err := s.post(s.newest+"/update", map[string][]byte{"manifest": c.Manifest})
		if err != nil {
			return nil, err
		}
		return parseOutcome(data)
	}, func() (reply, error) {
		data, err := s.postText("/update", c.Manifest)
		return reply{"data": data}, err
	})
}

func getPending(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	from := func(path string) func() (reply, error) {
		return func() (reply, error) {
			data, err := s.get(path, nil)
			if err != nil {
				return nil, err
			}
			var sent struct {
				Manifest []byte   `json:"manifest"`
				Message  string   `json:"message"`
				Users    []string `json:"missingUsers"`
			}
			names, err := decode(data, &sent)
			return reply{"manifest": sent.Manifest, "message": sent.Message, "users": sent.Users, "names": names}, err
		}
	}
	return s.both(from(s.newest+"/update-manifest"), from("/update-manifest"))
}

func acknowledgeUpdate(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	return s.both(func() (reply, error) {
		data, err := s.post(s.newest+"/update-manifest", map[string][]byte{"manifest": c.Manifest})
		if err != nil {
			return nil, err
		}
		return parseOutcome(data)
	}, func() (reply, error) {
		sentence, err := s.postText("/update-manifest", c.Manifest)
		if err != nil {
			return nil, err
		}
		// The only thing that tells what is missing is the first word.
		word, _, _ := strings.Cut(sentence, " ")
		if word == "All" {
			return reply{"missing": 0}, nil
		}
		missing, err := strconv.Atoi(word)
		return reply{"missing": missing}, err
	})
}

func cancelUpdate(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	from := func(path string) func() (reply, error) {
		return func() (reply, error) {
			data, err := s.post(path, nil)
			return reply{"data": data}, err
		}
	}
	return s.both(from(s.newest+"/update-cancel"), from("/update-cancel"))
}

// certificate is a certificate in JSON: base64 of its DER, or null.
type certificate struct{ *x509.Certificate }

func (c *certificate) UnmarshalJSON(text []byte) error {
	var der []byte
	if err := json.Unmarshal(text, &der); err != nil || len(der) == 0 {
		return err
	}
	parsed, err := x509.ParseCertificate(der)
	c.Certificate = parsed
	return err
}

func (c certificate) MarshalJSON() ([]byte, error) {
	if c.Certificate == nil {
		return []byte("null"), nil
	}
	return json.Marshal(c.Raw)
}

type secret struct {
	Type        string
	Size        uint
	Shared      bool
	UserDefined bool
	Cert        certificate
	ValidFor    uint
	Private     []byte
	Public      []byte
}

type userSecret struct {
	Cert    certificate
	Private []byte
	Key     []byte
}

// bareUserSecret is the same for clients that leave out what there is not.
func bareUserSecret(s userSecret) map[string]any {
	fields := map[string]any{}
	if s.Cert.Certificate != nil {
		fields["Cert"] = s.Cert
	}
	if s.Private != nil {
		fields["Private"] = s.Private
	}
	if s.Key != nil {
		fields["Key"] = s.Key
	}
	return fields
}

func getSecrets(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	query := url.Values{"s": c.Names}
	result := func(secrets map[string]secret, sent map[string]map[string]json.RawMessage) reply {
		fields := map[string][]string{}
		for name, names := range sent {
			for field := range names {
				fields[name] = append(fields[name], field)
			}
		}
		facts := map[string]reply{}
		for name, found := range secrets {
			facts[name] = secretFacts(found)
		}
		return reply{"secrets": facts, "fields": fields}
	}
	return s.both(func() (reply, error) {
		data, err := s.get(s.newest+"/secrets", query)
		if err != nil {
			return nil, err
		}
		var typed struct {
			Secrets map[string]secret `json:"secrets"`
		}
		var sent struct {
			Secrets map[string]map[string]json.RawMessage `json:"secrets"`
		}
		if _, err := decode(data, &typed); err != nil {
			return nil, err
		}
		names, err := decode(data, &sent)
		found := result(typed.Secrets, sent.Secrets)
		found["names"] = names
		return found, err
	}, func() (reply, error) {
		data, err := s.get("/secrets", query)
		if err != nil {
			return nil, err
		}
		var typed map[string]secret
		var sent map[string]map[string]json.RawMessage
		if _, err := decode(data, &typed); err != nil {
			return nil, err
		}
		_, err = decode(data, &sent)
		return result(typed, sent), err
	})
}

func secretFacts(s secret) reply {
	facts := reply{
		"type": s.Type, "size": s.Size, "shared": s.Shared, "user_defined": s.UserDefined, "valid_for": s.ValidFor,
		"private": s.Private, "public": s.Public, "cert": "",
	}
	if s.Cert.Certificate == nil {
		return facts
	}
	facts["cert"] = toPEM(s.Cert.Certificate)
	if key, err := x509.ParsePKCS8PrivateKey(s.Private); err == nil {
		facts["is_pair"] = isPair(s.Cert.Certificate, key)
	}
	if public, err := x509.MarshalPKIXPublicKey(s.Cert.PublicKey); err == nil {
		facts["is_public"] = string(public) == string(s.Public)
	}
	return facts
}

func setSecrets(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	upload := map[string]any{}
	for name, value := range c.Secrets {
		if c.Bare {
			upload[name] = bareUserSecret(value)
		} else {
			upload[name] = value
		}
	}
	return s.both(func() (reply, error) {
		data, err := s.post(s.newest+"/secrets", map[string]any{"secrets": upload})
		return reply{"data": data}, err
	}, func() (reply, error) {
		data, err := s.post("/secrets", upload)
		return reply{"data": data}, err
	})
}
