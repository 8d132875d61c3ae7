package proxywasm

import (
	"github.com/tetratelabs/wazero/api"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A callback is a function that guests export and the host calls.
type callback int

const (
	onContextCreate callback = iota
	onVMStart
	onConfigure
	onTick
	onDone
	onLog
	onDelete
	onRequestHeaders
	onRequestBody
	onRequestTrailers
	onResponseHeaders
	onResponseBody
	onResponseTrailers
	onNewConnection
	onDownstreamData
	onUpstreamData
	onDownstreamConnectionClose
	onUpstreamConnectionClose
	onHTTPCallResponse
	onGRPCReceiveInitialMetadata
	onGRPCReceive
	onGRPCReceiveTrailingMetadata
	onGRPCClose
	onQueueReady
	onForeignFunction
	initialize
	mainVoid
	mainArgs
	start
	numCallbacks
)

// callbacks describes them: export name, number of i32 parameters, whether there is an
// i32 result, and the parameters' names for traces.
var callbacks = [numCallbacks]struct {
	name   string
	params []string
	result bool
}{
	onContextCreate:               {"proxy_on_context_create", []string{"context", "parent"}, false},
	onVMStart:                     {"proxy_on_vm_start", []string{"context", "size"}, true},
	onConfigure:                   {"proxy_on_configure", []string{"context", "size"}, true},
	onTick:                        {"proxy_on_tick", []string{"context"}, false},
	onDone:                        {"proxy_on_done", []string{"context"}, true},
	onLog:                         {"proxy_on_log", []string{"context"}, false},
	onDelete:                      {"proxy_on_delete", []string{"context"}, false},
	onRequestHeaders:              {"proxy_on_request_headers", []string{"context", "headers", "end"}, true},
	onRequestBody:                 {"proxy_on_request_body", []string{"context", "size", "end"}, true},
	onRequestTrailers:             {"proxy_on_request_trailers", []string{"context", "trailers"}, true},
	onResponseHeaders:             {"proxy_on_response_headers", []string{"context", "headers", "end"}, true},
	onResponseBody:                {"proxy_on_response_body", []string{"context", "size", "end"}, true},
	onResponseTrailers:            {"proxy_on_response_trailers", []string{"context", "trailers"}, true},
	onNewConnection:               {"proxy_on_new_connection", []string{"context"}, true},
	onDownstreamData:              {"proxy_on_downstream_data", []string{"context", "size", "end"}, true},
	onUpstreamData:                {"proxy_on_upstream_data", []string{"context", "size", "end"}, true},
	onDownstreamConnectionClose:   {"proxy_on_downstream_connection_close", []string{"context", "peer"}, false},
	onUpstreamConnectionClose:     {"proxy_on_upstream_connection_close", []string{"context", "peer"}, false},
	onHTTPCallResponse:            {"proxy_on_http_call_response", []string{"context", "call", "headers", "size", "trailers"}, false},
	onGRPCReceiveInitialMetadata:  {"proxy_on_grpc_receive_initial_metadata", []string{"context", "call", "elements"}, false},
	onGRPCReceive:                 {"proxy_on_grpc_receive", []string{"context", "call", "size"}, false},
	onGRPCReceiveTrailingMetadata: {"proxy_on_grpc_receive_trailing_metadata", []string{"context", "call", "elements"}, false},
	onGRPCClose:                   {"proxy_on_grpc_close", []string{"context", "call", "status"}, false},
	onQueueReady:                  {"proxy_on_queue_ready", []string{"context", "queue"}, false},
	onForeignFunction:             {"proxy_on_foreign_function", []string{"context", "function", "size"}, false},
	initialize:                    {"_initialize", nil, false},
	mainVoid:                      {"__main_void", nil, true},
	mainArgs:                      {"main", []string{"argc", "argv"}, true},
	start:                         {"_start", nil, false},
}

// maxParams is the most parameters that a callback has.
const maxParams = 5

// name is the export's name; empty if the version does not have the callback.
func (cb callback) name(v abi.Version) string {
	if cb == onForeignFunction && v == abi.V010 {
		return ""
	}
	return callbacks[cb].name
}

// params is how many parameters the version gives the callback. In 0.1.0 headers come
// without end_of_stream.
func (cb callback) params(v abi.Version) int {
	if v == abi.V010 && (cb == onRequestHeaders || cb == onResponseHeaders) {
		return 2
	}
	return len(callbacks[cb].params)
}

func (cb callback) signature(v abi.Version) (params, results []api.ValueType) {
	params, results = []api.ValueType{}, []api.ValueType{}
	for range cb.params(v) {
		params = append(params, api.ValueTypeI32)
	}
	if callbacks[cb].result {
		results = append(results, api.ValueTypeI32)
	}
	return params, results
}
