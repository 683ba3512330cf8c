package main

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
)

func parseChain(text string) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	rest := []byte(text)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return chain, nil
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, certificate)
	}
}

// inspect shows what Go reads in the first certificate of Leaf and whether it validates against Roots for Name.
func inspect(c *command) (reply, error) {
	chain, err := parseChain(c.Leaf)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return nil, errors.New("no certificate")
	}
	result := describe(chain[0])
	result["chain"] = len(chain)
	if c.Roots == "" {
		return result, nil
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(c.Roots)) {
		return nil, errors.New("no root certificate")
	}
	intermediates.AppendCertsFromPEM([]byte(c.Intermediates))
	_, err = chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, DNSName: c.Name,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		result["invalid"] = err.Error()
	}
	return result, nil
}

func describe(certificate *x509.Certificate) reply {
	extensions := []string{}
	values := map[string]string{}
	for _, extension := range certificate.Extensions {
		extensions = append(extensions, extension.Id.String())
		values[extension.Id.String()] = hex.EncodeToString(extension.Value)
	}
	critical := []string{}
	for _, extension := range certificate.Extensions {
		if extension.Critical {
			critical = append(critical, extension.Id.String())
		}
	}
	ips := []string{}
	for _, ip := range certificate.IPAddresses {
		ips = append(ips, ip.String())
	}
	var issuer, subject asn1.RawValue
	_, _ = asn1.Unmarshal(certificate.RawIssuer, &issuer)
	_, _ = asn1.Unmarshal(certificate.RawSubject, &subject)
	return reply{
		"version":                 certificate.Version,
		"serial_bits":             certificate.SerialNumber.BitLen(),
		"signature_algorithm":     certificate.SignatureAlgorithm.String(),
		"public_key_algorithm":    certificate.PublicKeyAlgorithm.String(),
		"issuer":                  certificate.Issuer.String(),
		"subject":                 certificate.Subject.String(),
		"not_before":              certificate.NotBefore.Unix(),
		"not_after":               certificate.NotAfter.Unix(),
		"key_usage":               int(certificate.KeyUsage),
		"ext_key_usage":           certificate.ExtKeyUsage,
		"basic_constraints_valid": certificate.BasicConstraintsValid,
		"is_ca":                   certificate.IsCA,
		"max_path_len":            certificate.MaxPathLen,
		"max_path_len_zero":       certificate.MaxPathLenZero,
		"subject_key_id":          hex.EncodeToString(certificate.SubjectKeyId),
		"authority_key_id":        hex.EncodeToString(certificate.AuthorityKeyId),
		"dns_names":               certificate.DNSNames,
		"ip_addresses":            ips,
		"emails":                  certificate.EmailAddresses,
		"uris":                    len(certificate.URIs),
		"extensions":              extensions,
		"critical":                critical,
		"values":                  values,
	}
}
