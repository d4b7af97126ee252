package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/weftdata/weft/activities"
)

// Folder is what a process and its agents share.
//
//	process.json  a Record: what runs there
//	alive         locked as long as the process lives
//	ended.json    an activities.Ended, by a process that ended in an orderly way
//	settled       there is nothing more to tell Temporal
//	tokens/       the task tokens of its shards while they run
//	log/          worker.log, which is rotated, and output.log: what it wrote besides, such as a panic
//	work/         state that does not fit the memory
type Folder string

const (
	recordFile  = "process.json"
	aliveFile   = "alive"
	endedFile   = "ended.json"
	settledFile = "settled"
	tokensDir   = "tokens"
	logDir      = "log"
	workDir     = "work"

	workerLog = "worker.log"
	outputLog = "output.log"
)

// Record says what process runs in a folder.
type Record struct {
	Job         string    `json:"job"`
	Version     int       `json:"version"`
	Process     int       `json:"process"`
	Slots       int       `json:"slots"`
	Token       []byte    `json:"token"` // of its activity
	PID         int       `json:"pid,omitempty"`
	Agent       string    `json:"agent"`
	Engine      string    `json:"engine"` // digest
	Started     time.Time `json:"started"`
	MemoryBytes int64     `json:"memory_bytes"` // at most
	CPU         float64   `json:"cpu"`          // processors
	CGroups     []string  `json:"cgroups,omitempty"`
}

func (r *Record) name() string { return fmt.Sprintf("%s/%d/%d", r.Job, r.Version, r.Process) }

func (f Folder) file(name string) string { return filepath.Join(string(f), name) }

// Work is where the process keeps state that does not fit the memory.
func (f Folder) Work() string { return f.file(workDir) }

// WorkerLog is the file of the process's log.
func (f Folder) WorkerLog() string { return filepath.Join(string(f), logDir, workerLog) }

func (f Folder) outputLog() string { return filepath.Join(string(f), logDir, outputLog) }

func (f Folder) read() (r Record, err error) {
	return r, readJSON(f.file(recordFile), &r)
}

func readJSON(file string, into any) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// writeJSON replaces a file in one step. Only the owner can read it: there are task tokens in it.
func writeJSON(file string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	fresh := file + ".new"
	if err := os.WriteFile(fresh, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, file)
}

// lockFile locks a file for as long as it is open, here or in a process that inherits it.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
	}
	return f, nil
}

// wait returns when no process lives in the folder. It may leave a goroutine behind that waits for that.
func (f Folder) wait() error {
	file, err := os.OpenFile(f.file(aliveFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // it was only asked
	for {
		if err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// Process is the side of the process itself.
type Process struct {
	Folder
	Record
}

// Attach opens the folder in which an agent started this process.
func Attach(dir string) (*Process, error) {
	r, err := Folder(dir).read()
	if err != nil {
		return nil, fmt.Errorf("this is not the folder of a process: %w", err)
	}
	return &Process{Folder(dir), r}, nil
}

// End notes that the process ends in an orderly way.
func (p *Process) End(reason string, last activities.Beat) error {
	return writeJSON(p.file(endedFile), activities.Ended{Reason: reason, Last: last})
}

// shardToken is a file of tokensDir.
type shardToken struct {
	Run   string `json:"run"`
	Token []byte `json:"token"`
}

// RunStarted keeps the task token of a run, so that Temporal can be told at once if the process dies.
func (p *Process) RunStarted(run string, token []byte) error {
	if err := os.MkdirAll(p.file(tokensDir), 0o700); err != nil {
		return err
	}
	return writeJSON(p.tokenFile(run), shardToken{run, token})
}

// RunEnded drops the token of a run.
func (p *Process) RunEnded(run string) error { return os.Remove(p.tokenFile(run)) }

func (p *Process) tokenFile(run string) string {
	return filepath.Join(p.file(tokensDir), fmt.Sprintf("%x.json", run))
}
