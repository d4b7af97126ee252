package devstack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
)

// Ports that are chosen lie between these: above those of well-known servers, and below those that systems give to
// outgoing connections, one of which could hold a kept port at the next start.
const (
	portMin   = 20_000
	portMax   = 32_000
	portTries = 1_000
)

// ports are those that clients know, kept in the data folder so that a restart does not move the servers.
type ports struct {
	Temporal int `json:"temporal"`
	Kafka    int `json:"kafka"`
	S3       int `json:"s3"`

	// Between the parts of Temporal; nobody else knows them, so each start chooses anew.
	history, matching, worker int
}

// choosePorts reads the ports of the last start, chooses those that are missing, and checks that all are free.
func choosePorts(cfg Config) (p ports, err error) {
	name := filepath.Join(cfg.Data, "addresses.json")
	if err := readPorts(name, &p); err != nil {
		return p, err
	}
	taken := map[int]bool{}
	for _, c := range []struct {
		port              *int
		server            string
		configured, usual int
	}{
		{&p.Temporal, "Temporal", cfg.TemporalPort, 7233},
		{&p.Kafka, "Kafka", cfg.KafkaPort, 9092},
		{&p.S3, "the object store", cfg.S3Port, 9000},
		{&p.history, "Temporal's history", 0, 0},
		{&p.matching, "Temporal's matching", 0, 0},
		{&p.worker, "Temporal's worker", 0, 0},
	} {
		switch {
		case c.configured != 0:
			*c.port = c.configured
		case *c.port != 0: // as it was
		case cfg.UsualPorts && c.usual != 0 && free(c.usual) == nil:
			*c.port = c.usual
		default:
			*c.port = choosePort(taken)
		}
		if taken[*c.port] {
			return p, fmt.Errorf("port %d is given to two servers", *c.port)
		}
		if err := free(*c.port); err != nil {
			return p, fmt.Errorf("port of %s: %w; end the program that has it, or delete %s to choose others", c.server, err, name)
		}
		taken[*c.port] = true
	}
	text, err := json.Marshal(p)
	if err != nil {
		return p, err
	}
	return p, writeWhole(name, append(text, '\n'))
}

// readPorts reads what an earlier start chose, if there was one.
func readPorts(name string, p *ports) error {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, p); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// choosePort returns a port that is free. Should it find none, the last one tried, of which the check tells.
func choosePort(taken map[int]bool) (port int) {
	for range portTries {
		port = portMin + rand.IntN(portMax-portMin)
		if !taken[port] && free(port) == nil {
			break
		}
	}
	return port
}

// free returns an error unless a server could listen on the port now.
func free(port int) error {
	l, err := net.Listen("tcp", address(port))
	if err != nil {
		return err
	}
	return l.Close()
}
