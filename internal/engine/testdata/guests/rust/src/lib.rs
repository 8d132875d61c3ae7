//! A guest that does what the header x-do of a request says, by the Rust SDK.

use log::warn;
use proxy_wasm::traits::{Context, HttpContext, RootContext, StreamContext};
use proxy_wasm::types::{Action, Bytes, ContextType, LogLevel, MetricType};
use std::time::Duration;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Trace);
    proxy_wasm::set_root_context(|_| Box::new(Root { network: false }));
}}

struct Root {
    network: bool,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_vm_start(&mut self, _: usize) -> bool {
        warn!("vm configuration {:?}", self.get_vm_configuration());
        true
    }

    fn on_configure(&mut self, _: usize) -> bool {
        let settings = self.get_plugin_configuration().unwrap_or_default();
        self.network = settings == b"network";
        self.set_tick_period(Duration::from_millis(20));
        true
    }

    fn on_tick(&mut self) {
        self.set_tick_period(Duration::ZERO);
        warn!("tick = 0");
    }

    fn on_queue_ready(&mut self, queue: u32) {
        warn!("queue is ready = 0 {:?}", self.dequeue_shared_queue(queue).ok().flatten().map(text));
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Http { deed: String::new() }))
    }

    fn create_stream_context(&self, _: u32) -> Option<Box<dyn StreamContext>> {
        Some(Box::new(Tcp))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(if self.network { ContextType::StreamContext } else { ContextType::HttpContext })
    }
}

fn text(b: Bytes) -> String {
    String::from_utf8_lossy(&b).into_owned()
}

struct Http {
    deed: String,
}

impl Http {
    fn shared(&self) {
        warn!("set {:?}", self.set_shared_data("key", Some(b"value"), None));
        let (value, cas) = self.get_shared_data("key");
        warn!("get {:?}", value.map(text));
        warn!("cas {:?}", self.set_shared_data("key", Some(b"other"), cas));
        warn!("old cas {:?}", self.set_shared_data("key", Some(b"third"), cas));
        let queue = self.register_shared_queue("queue");
        warn!("resolve {:?}", self.resolve_shared_queue("vm", "queue") == Some(queue));
        warn!("resolve nothing {:?}", self.resolve_shared_queue("vm", "nothing"));
        warn!("enqueue {:?}", self.enqueue_shared_queue(queue, Some(b"ready")));
    }

    fn metrics(&self) {
        let counter = proxy_wasm::hostcalls::define_metric(MetricType::Counter, "guest.counter").unwrap();
        let gauge = proxy_wasm::hostcalls::define_metric(MetricType::Gauge, "guest.gauge").unwrap();
        warn!("increment {:?}", proxy_wasm::hostcalls::increment_metric(counter, 3));
        warn!("record {:?}", proxy_wasm::hostcalls::record_metric(gauge, 42));
        warn!("counter {:?}", proxy_wasm::hostcalls::get_metric(counter));
        warn!("gauge {:?}", proxy_wasm::hostcalls::get_metric(gauge));
    }
}

impl Context for Http {
    fn on_http_call_response(&mut self, _: u32, headers: usize, size: usize, trailers: usize) {
        warn!("answer {headers} {size} {trailers}");
        for (name, value) in self.get_http_call_response_headers() {
            if name != "x-envoy-upstream-service-time" {
                warn!("{name}: {value}");
            }
        }
        warn!("body {:?}", self.get_http_call_response_body(0, size).map(text));
        self.add_http_request_header("x-called", "yes");
        self.resume_http_request();
    }

    fn on_grpc_call_response(&mut self, _: u32, status: u32, size: usize) {
        warn!("grpc {status} {:?}", self.get_grpc_call_response_body(0, size).map(text));
        self.resume_http_request();
    }

    fn on_done(&mut self) -> bool {
        warn!("deleted");
        true
    }
}

impl HttpContext for Http {
    fn on_http_request_headers(&mut self, count: usize, end: bool) -> Action {
        self.deed = self.get_http_request_header("x-do").unwrap_or_default();
        warn!("request headers {} {count} {end}", self.deed);
        match self.deed.as_str() {
            "headers" => {
                for (name, value) in self.get_http_request_headers() {
                    warn!("{name}: {}", if name == "x-request-id" { "..." } else { &value });
                }
                self.set_http_request_header("x-mixed", Some("replaced"));
                self.add_http_request_header("x-added", "one");
                self.set_http_request_header("x-gone", None);
                warn!("path {:?}", self.get_property(vec!["request", "path"]).map(text));
            }
            "append" => self.set_http_request_header("content-length", None),
            "shared" => self.shared(),
            "metrics" => self.metrics(),
            "local" => {
                self.send_http_response(403, vec![("x-local", "1")], Some(b"no\n"));
                return Action::Pause;
            }
            "call" => {
                let call = self.dispatch_http_call(
                    "backend",
                    vec![(":method", "POST"), (":path", "/p/called"), (":authority", "call.example")],
                    Some(b"the body"), vec![], Duration::from_secs(5));
                warn!("call {}", call.is_ok());
                return Action::Pause;
            }
            "call nobody" => {
                let headers = vec![(":method", "GET"), (":path", "/"), (":authority", "x")];
                warn!("call {:?}", self.dispatch_http_call("nobody", headers, None, vec![], Duration::from_secs(5)));
            }
            "grpc unary" => {
                let call = self.dispatch_grpc_call("grpc", "test.Service", "Unary", vec![("x-meta", b"1")], Some(b"ping"), Duration::from_secs(5));
                warn!("call {}", call.is_ok());
                return Action::Pause;
            }
            "panic" => panic!("as it was told"),
            _ => {}
        }
        Action::Continue
    }

    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        if !end {
            return Action::Pause;
        }
        warn!("request body {:?}", self.get_http_request_body(0, size).map(text));
        if self.deed == "append" {
            self.set_http_request_body(size, 0, b"[more]");
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, count: usize, end: bool) -> Action {
        warn!("response headers {count} {end}");
        if self.deed == "headers" {
            self.set_http_response_header("x-back", Some("replaced"));
            self.add_http_response_header("x-added", "one");
        }
        if self.deed == "append" {
            self.set_http_response_header("content-length", None);
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end: bool) -> Action {
        if !end {
            return Action::Pause;
        }
        if self.deed == "append" {
            self.set_http_response_body(size, 0, b"[more]");
        }
        Action::Continue
    }

    fn on_log(&mut self) {
        warn!("log {:?}", self.get_property(vec!["response", "code"]));
    }
}

struct Tcp;

impl Context for Tcp {
    fn on_done(&mut self) -> bool {
        warn!("deleted");
        true
    }
}

impl StreamContext for Tcp {
    fn on_new_connection(&mut self) -> Action {
        warn!("new connection");
        Action::Continue
    }

    fn on_downstream_data(&mut self, size: usize, end: bool) -> Action {
        warn!("downstream {:?} {end}", self.get_downstream_data(0, size).map(text));
        if size > 0 {
            self.set_downstream_data(size, 0, b"<");
        }
        Action::Continue
    }

    fn on_upstream_data(&mut self, size: usize, end: bool) -> Action {
        warn!("upstream {:?} {end}", self.get_upstream_data(0, size).map(text));
        if size > 0 {
            self.set_upstream_data(0, size, b"[all]");
        }
        Action::Continue
    }
}
