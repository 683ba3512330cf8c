// Answers, line by line, what the reference's YAML library makes of a base64 document: base64 JSON, or "-" for an error.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"

	"sigs.k8s.io/yaml"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		document, err := base64.StdEncoding.DecodeString(lines.Text())
		if err == nil && !json.Valid(document) {
			document, err = yaml.YAMLToJSONStrict(document)
		}
		if err != nil {
			fmt.Println("-")
			continue
		}
		fmt.Println(base64.StdEncoding.EncodeToString(document))
	}
}
