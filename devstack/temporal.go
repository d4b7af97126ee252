package devstack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/log"
	"go.temporal.io/server/common/membership/static"
	sqliteplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/common/primitives"
	"go.temporal.io/server/schema/sqlite"
	"go.temporal.io/server/temporal"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weftdata/weft/stack"
)

const (
	clusterName      = "weft-dev"
	historyRetention = 7 * 24 * time.Hour // how long a finished workflow can be looked at
)

// searchAttributes are those that Weft's workflows set.
func searchAttributes() map[string]enums.IndexedValueType {
	return map[string]enums.IndexedValueType{
		"WeftJob":     enums.INDEXED_VALUE_TYPE_KEYWORD,
		"WeftPhase":   enums.INDEXED_VALUE_TYPE_KEYWORD,
		"WeftVersion": enums.INDEXED_VALUE_TYPE_KEYWORD,
	}
}

// temporalServer is a Temporal server with all its parts in this process.
type temporalServer struct {
	server  temporal.Server
	address string
	client  client.Client // once the frontend was reached
}

func startTemporal(cfg Config, p ports) (*temporalServer, error) {
	db, err := openDatabase(filepath.Join(cfg.Data, "temporal"))
	if err != nil {
		return nil, fmt.Errorf("Temporal's database: %w", err)
	}
	logger := log.NewZapLogger(log.BuildZapLogger(log.Config{
		Level: "warn", OutputFile: filepath.Join(cfg.Data, "logs", "temporal.log"),
	}))
	server, err := temporal.NewServer(
		temporal.WithConfig(temporalConfig(db, p)),
		temporal.ForServices(temporal.DefaultServices),
		// One process is the whole cluster: without membership there is none to wait for, nor a dead one to forget.
		temporal.WithStaticHosts(map[primitives.ServiceName]static.Hosts{
			primitives.FrontendService: static.SingleLocalHost(address(p.Temporal)),
			primitives.HistoryService:  static.SingleLocalHost(address(p.history)),
			primitives.MatchingService: static.SingleLocalHost(address(p.matching)),
			primitives.WorkerService:   static.SingleLocalHost(address(p.worker)),
		}),
		temporal.WithLogger(logger),
		temporal.WithAuthorizer(authorization.NewNoopAuthorizer()),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper { return authorization.NewNoopClaimMapper() }),
		temporal.WithDynamicConfigClient(dynamicSettings()),
	)
	if err != nil {
		return nil, fmt.Errorf("Temporal: %w", err)
	}
	if err := server.Start(); err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	return &temporalServer{server: server, address: address(p.Temporal)}, nil
}

// openDatabase returns the settings of the SQLite file in a folder, which it makes with the schema and the namespace.
func openDatabase(dir string) (*config.SQL, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, "temporal.db")
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		// The schema is many statements: a process that ends among them must not leave a file that looks whole.
		if err := createDatabase(name); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	db := database(name)
	ns, err := sqlite.NewNamespaceConfig(clusterName, stack.DefaultNamespace, false, searchAttributes())
	if err != nil {
		return nil, err
	}
	ns.Detail.Config.Retention = durationpb.New(historyRetention)
	return db, sqlite.CreateNamespaces(db, ns)
}

// createDatabase makes the file under another name and renames it when its schema is complete.
func createDatabase(name string) error {
	partial := name + ".new"
	if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db := database(partial)
	// With a log beside it the file alone would not be all of the database, and renaming it would lose the rest.
	db.ConnectAttributes["journal_mode"] = "delete"
	if err := sqlite.SetupSchema(db); err != nil {
		return err
	}
	return os.Rename(partial, name)
}

func database(name string) *config.SQL {
	return &config.SQL{
		PluginName:   sqliteplugin.PluginName,
		DatabaseName: (&url.URL{Path: name}).EscapedPath(), // it becomes part of a URI
		ConnectAttributes: map[string]string{
			"mode":         "rwc",
			"journal_mode": "wal",
			"synchronous":  "normal", // a killed process loses nothing; a machine that loses power, the last moment
		},
	}
}

func temporalConfig(db *config.SQL, p ports) *config.Config {
	service := func(port int) config.Service {
		return config.Service{RPC: config.RPC{GRPCPort: port, BindOnIP: host}}
	}
	var c config.Config
	c.Global.Membership.MaxJoinDuration = readyTimeout
	c.Global.Membership.BroadcastAddress = host
	c.Persistence = config.Persistence{
		DefaultStore:     sqliteplugin.PluginName,
		VisibilityStore:  sqliteplugin.PluginName,
		NumHistoryShards: 1, // SQLite has one writer
		DataStores:       map[string]config.DataStore{sqliteplugin.PluginName: {SQL: db}},
	}
	c.ClusterMetadata = &cluster.Config{
		FailoverVersionIncrement: 10,
		MasterClusterName:        clusterName,
		CurrentClusterName:       clusterName,
		ClusterInformation: map[string]cluster.ClusterInformation{
			clusterName: {Enabled: true, InitialFailoverVersion: 1, RPCAddress: address(p.Temporal)},
		},
	}
	c.DCRedirectionPolicy.Policy = "noop"
	c.Services = map[string]config.Service{
		string(primitives.FrontendService): service(p.Temporal),
		string(primitives.HistoryService):  service(p.history),
		string(primitives.MatchingService): service(p.matching),
		string(primitives.WorkerService):   service(p.worker),
	}
	c.Archival.History.State = "disabled"
	c.Archival.Visibility.State = "disabled"
	c.NamespaceDefaults.Archival.History.State = "disabled"
	c.NamespaceDefaults.Archival.Visibility.State = "disabled"
	c.PublicClient.HostPort = address(p.Temporal)
	return &c
}

// dynamicSettings fits a server of thousands of machines to one.
func dynamicSettings() dynamicconfig.StaticClient {
	return dynamicconfig.StaticClient{
		// A queue in one part needs no forwarding between parts.
		dynamicconfig.MatchingNumTaskqueueReadPartitions.Key():  1,
		dynamicconfig.MatchingNumTaskqueueWritePartitions.Key(): 1,
		dynamicconfig.HistoryCacheHostLevelMaxSize.Key():        8192,
		// The API lists workflows more often than the default 10 times a second lets it.
		dynamicconfig.FrontendMaxNamespaceVisibilityRPSPerInstance.Key(): 200,
		// A search attribute can be used as soon as it is registered.
		dynamicconfig.ForceSearchAttributesCacheRefreshOnRead.Key(): true,
	}
}

// check asks the frontend for the namespace, the history service for a workflow, and whether Weft's search attributes
// are registered; those that a later release of Weft added are registered then.
func (t *temporalServer) check(ctx context.Context) (err error) {
	if t.client == nil {
		t.client, err = client.DialContext(ctx, client.Options{
			HostPort: t.address, Namespace: stack.DefaultNamespace, Logger: quiet{},
		})
		if err != nil {
			return err
		}
	}
	if _, err := t.client.CheckHealth(ctx, nil); err != nil {
		return err
	}
	_, err = t.client.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{
		Namespace: stack.DefaultNamespace,
	})
	if err != nil {
		return err
	}
	var none *serviceerror.NotFound
	if _, err := t.client.DescribeWorkflowExecution(ctx, "weft-dev-no-such-workflow", ""); err != nil && !errors.As(err, &none) {
		return err
	}
	return t.register(ctx)
}

// register adds the search attributes that are missing.
func (t *temporalServer) register(ctx context.Context) error {
	operator := t.client.OperatorService()
	have, err := operator.ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: stack.DefaultNamespace})
	if err != nil {
		return err
	}
	missing := searchAttributes()
	for name := range have.GetCustomAttributes() {
		delete(missing, name)
	}
	if len(missing) == 0 {
		return nil
	}
	_, err = operator.AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
		Namespace: stack.DefaultNamespace, SearchAttributes: missing,
	})
	return err
}

func (t *temporalServer) stop() error {
	if t.client != nil {
		t.client.Close()
	}
	return t.server.Stop()
}

// quiet drops what the client that asks whether the server answers has to say about one that does not yet.
type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}
