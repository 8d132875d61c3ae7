//! A Proxy-Wasm plugin: it adds headers to responses. Its configuration is their
//! names and values, as in {"x-__NAME__": "hello"}.

mod config;

use log::error;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};
use std::rc::Rc;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Plugin::default()) });
}}

/// One configuration.
#[derive(Default)]
struct Plugin {
    headers: Rc<Vec<(String, String)>>,
}

impl Context for Plugin {}

impl RootContext for Plugin {
    /// Reads the configuration. If it is refused, the proxy does not take it.
    fn on_configure(&mut self, _: usize) -> bool {
        match config::parse(&self.get_plugin_configuration().unwrap_or_default()) {
            Ok(headers) => {
                self.headers = Rc::new(headers);
                true
            }
            Err(why) => {
                error!("refuse configuration: {why}");
                false
            }
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream { headers: Rc::clone(&self.headers) }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// One request and its response.
struct Stream {
    headers: Rc<Vec<(String, String)>>,
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        for (name, value) in self.headers.iter() {
            self.set_http_response_header(name, Some(value));
        }
        Action::Continue
    }
}
