package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
)

func parseChain(text string) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	rest := []byte(text)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(rest) > 0 {
				return nil, errors.New("something follows the certificates")
			}
			return chain, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("unexpected block " + block.Type)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, certificate)
	}
}

func toPEM(certificate *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw}))
}

func isPair(certificate *x509.Certificate, key any) bool {
	private, canSign := key.(crypto.Signer)
	if !canSign {
		return false
	}
	public, canCompare := private.Public().(interface{ Equal(crypto.PublicKey) bool })
	return canCompare && public.Equal(certificate.PublicKey)
}

// recoverState does what a party does: decrypts its secret, signs it, and sends it, if wanted for the Coordinator only.
func recoverState(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(c.Recovery))
	if block == nil {
		return nil, errors.New("no recovery key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, isRSA := parsed.(*rsa.PrivateKey)
	if !isRSA {
		return nil, errors.New("the recovery key is no RSA key")
	}
	plain, err := rsa.DecryptOAEP(sha256.New(), rand.Reader, key, c.Encrypted, nil)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(plain)
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	if err != nil {
		return nil, err
	}
	return s.both(func() (reply, error) {
		secret := plain
		if c.Ephemeral {
			if secret, err = encryptFor(s, plain); err != nil {
				return nil, err
			}
		}
		data, err := s.post(s.newest+"/recover", map[string][]byte{
			"recoverySecret": secret, "recoverySecretSignature": signature,
		})
		if err != nil {
			return nil, err
		}
		var sent struct {
			Remaining int    `json:"remaining"`
			Message   string `json:"message"`
		}
		names, err := decode(data, &sent)
		return reply{"remaining": sent.Remaining, "message": sent.Message, "names": names}, err
	}, nil)
}

func encryptFor(s *session, plain []byte) ([]byte, error) {
	data, err := s.get(s.newest+"/recover/public-key", nil)
	if err != nil {
		return nil, err
	}
	var sent struct {
		Algorithm string `json:"algorithm"`
		Key       []byte `json:"ephemeralPublicKey"`
	}
	if _, err := decode(data, &sent); err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKIXPublicKey(sent.Key)
	if err != nil {
		return nil, err
	}
	key, isRSA := parsed.(*rsa.PublicKey)
	if !isRSA || sent.Algorithm != "RSA" || key.N.BitLen() != 4096 {
		return nil, fmt.Errorf("not an RSA key of 4096 bits: %s", sent.Algorithm)
	}
	return rsa.EncryptOAEP(sha256.New(), rand.Reader, key, plain, nil)
}

func signQuote(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	return s.both(func() (reply, error) {
		data, err := s.post(s.newest+"/sign-quote", map[string][]byte{"sgxQuote": c.Quote})
		if err != nil {
			return nil, err
		}
		var sent struct {
			TCB       string `json:"tcbStatus"`
			Signature []byte `json:"verificationSignature"`
		}
		names, err := decode(data, &sent)
		if err != nil {
			return nil, err
		}
		roots, err := parseChain(c.Root)
		if err != nil {
			return nil, err
		}
		key, isECDSA := roots[0].PublicKey.(*ecdsa.PublicKey)
		if !isECDSA {
			return nil, errors.New("the root's key is no ECDSA key")
		}
		digest := sha256.Sum256([]byte(base64.StdEncoding.EncodeToString(c.Quote) + sent.TCB))
		return reply{"tcb": sent.TCB, "is_signed": ecdsa.VerifyASN1(key, digest[:], sent.Signature), "names": names}, nil
	}, nil)
}

func setCounter(c *command) (reply, error) {
	s, err := connect(c)
	if err != nil {
		return nil, err
	}
	return s.both(func() (reply, error) {
		data, err := s.post(s.newest+"/monotonic-counter", struct {
			Name  string `json:"name"`
			Value uint64 `json:"value"`
		}{c.Name, c.Value})
		if err != nil {
			return nil, err
		}
		var sent struct {
			Value uint64 `json:"value"`
		}
		names, err := decode(data, &sent)
		// As text: the way back to the test must not depend on how somebody reads large numbers.
		return reply{"value": fmt.Sprint(sent.Value), "names": names}, err
	}, nil)
}

// verifyCertificate validates the first certificate of Leaf as Go does by default: as a server, with what follows it and
// Intermediates in between. Without Name no host is asked for.
func verifyCertificate(c *command) (reply, error) {
	chain, err := parseChain(c.Leaf)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return nil, errors.New("no certificate")
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(c.Roots)) {
		return nil, errors.New("no root certificate")
	}
	for _, certificate := range chain[1:] {
		intermediates.AddCert(certificate)
	}
	intermediates.AppendCertsFromPEM([]byte(c.Intermediates))
	paths, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, DNSName: c.Name})
	if err != nil {
		return nil, err
	}
	return reply{"length": len(paths[0])}, nil
}
