// Package manifest has the shapes that stand under a template's dot. It has this name so that the types are printed as
// the reference prints them.
package manifest

import (
	"crypto/x509"
	_ "embed"
	"encoding/json"
)

//go:embed data.json
var sample []byte

type (
	Certificate x509.Certificate
	PrivateKey  []byte
	PublicKey   []byte
)

type Secret struct {
	Type        string
	Size        uint
	Shared      bool
	UserDefined bool
	ValidFor    uint
	Cert        Certificate
	Private     PrivateKey
	Public      PublicKey
}

type ReservedSecrets struct {
	RootCA, MarbleCert, CoordinatorRoot, CoordinatorIntermediate Secret
}

type PreviousSecrets struct {
	Secrets map[string]Secret
}

type TemplateData struct {
	MarbleRun ReservedSecrets
	Secrets   map[string]Secret
	Previous  PreviousSecrets
}

// entry is a secret as data.json writes it: byte fields in base64, all keys optional.
type entry struct {
	Type                  string
	Size, ValidFor        uint
	Shared, UserDefined   bool
	Cert, Private, Public []byte
}

func (e entry) secret() Secret {
	cert := Certificate{Raw: e.Cert}
	if parsed, err := x509.ParseCertificate(e.Cert); err == nil {
		cert = Certificate(*parsed)
	}
	return Secret{e.Type, e.Size, e.Shared, e.UserDefined, e.ValidFor, cert, e.Private, e.Public}
}

// Sample is the data of all test cases, from data.json.
func Sample() TemplateData {
	var stored struct {
		MarbleRun         struct{ RootCA, MarbleCert, CoordinatorRoot, CoordinatorIntermediate entry }
		Secrets, Previous map[string]entry
	}
	if err := json.Unmarshal(sample, &stored); err != nil {
		panic(err)
	}
	secrets := func(entries map[string]entry) map[string]Secret {
		result := map[string]Secret{}
		for name, e := range entries {
			result[name] = e.secret()
		}
		return result
	}
	reserved := stored.MarbleRun
	return TemplateData{
		MarbleRun: ReservedSecrets{
			RootCA:                  reserved.RootCA.secret(),
			MarbleCert:              reserved.MarbleCert.secret(),
			CoordinatorRoot:         reserved.CoordinatorRoot.secret(),
			CoordinatorIntermediate: reserved.CoordinatorIntermediate.secret(),
		},
		Secrets:  secrets(stored.Secrets),
		Previous: PreviousSecrets{Secrets: secrets(stored.Previous)},
	}
}
