module github.com/weftdata/weft/internal/tools

go 1.26.0

// Tools that tests run. They are a module of their own, so that what they need is not what Weft needs.
tool go.temporal.io/sdk/contrib/tools/workflowcheck

require go.temporal.io/sdk/contrib/tools/workflowcheck v0.6.0 // indirect

require (
	golang.org/x/mod v0.42.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	gopkg.in/yaml.v2 v2.4.0 // indirect
)

require golang.org/x/tools v0.52.0 // indirect; v0.25 of the tool's own does not read packages of this Go
