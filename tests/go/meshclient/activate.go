package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// rawCodec hands messages through as bytes, so that a test can send any.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = bytes.Clone(data.Materialize())
	return nil
}

func activate(c *command) (reply, error) {
	config, err := clientConfig(c)
	if err != nil {
		return nil, err
	}
	quote, err := hex.DecodeString(c.Quote)
	if err != nil {
		return nil, err
	}
	var csr []byte
	if c.CSR != "" {
		if csr, err = hex.DecodeString(c.CSR); err != nil {
			return nil, err
		}
	} else if c.Identity != nil {
		csr = identities[*c.Identity].csr
	}
	var request []byte
	for number, value := range [][]byte{quote, csr, []byte(c.Type), []byte(c.UUID), make([]byte, c.Padding)} {
		if len(value) > 0 {
			request = protowire.AppendTag(request, protowire.Number(number+1), protowire.BytesType)
			request = protowire.AppendBytes(request, value)
		}
	}
	connection, err := grpc.NewClient(c.Target, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	timeout := 10 * time.Second
	if c.Timeout > 0 {
		timeout = time.Duration(c.Timeout) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	options := []grpc.CallOption{grpc.ForceCodecV2(rawCodec{})}
	if c.Compress {
		options = append(options, grpc.UseCompressor(gzip.Name))
	}
	path := c.Path
	if path == "" {
		path = "/rpc.Marble/Activate"
	}
	var response []byte
	err = connection.Invoke(ctx, path, request, &response, options...)
	state := status.Convert(err)
	result := reply{"code": state.Code().String(), "message": state.Message()}
	if err != nil {
		return result, nil
	}
	return result, parseResponse(response, result)
}

// parseResponse reads ActivationResp{Parameters{Files, Env, Argv}} by hand.
func parseResponse(data []byte, result reply) error {
	files, env, argv := map[string]string{}, map[string]string{}, []string{}
	err := eachField(data, func(number protowire.Number, parameters []byte) error {
		return eachField(parameters, func(number protowire.Number, value []byte) error {
			switch number {
			case 1:
				return addEntry(files, value)
			case 2:
				return addEntry(env, value)
			case 3:
				argv = append(argv, string(value))
			}
			return nil
		})
	})
	result["files"], result["env"], result["argv"] = files, env, argv
	return err
}

func addEntry(entries map[string]string, data []byte) error {
	var key string
	var content []byte
	err := eachField(data, func(number protowire.Number, value []byte) error {
		if number == 1 {
			key = string(value)
		} else {
			content = value
		}
		return nil
	})
	entries[key] = hex.EncodeToString(content)
	return err
}

func eachField(data []byte, take func(protowire.Number, []byte) error) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 || kind != protowire.BytesType {
			return errors.New("not the expected message")
		}
		value, m := protowire.ConsumeBytes(data[n:])
		if m < 0 {
			return errors.New("truncated message")
		}
		if err := take(number, value); err != nil {
			return err
		}
		data = data[n+m:]
	}
	return nil
}
