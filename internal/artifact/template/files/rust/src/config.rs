//! The configuration, which knows nothing of the proxy.

use serde_json::Value;

/// Reads a configuration, an object of strings; there need not be one.
pub fn parse(config: &[u8]) -> Result<Vec<(String, String)>, String> {
    if config.is_empty() {
        return Ok(Vec::new());
    }
    let Value::Object(fields) = serde_json::from_slice(config).map_err(|e| e.to_string())? else {
        return Err("want an object".into());
    };
    fields
        .into_iter()
        .map(|(name, value)| match value {
            _ if name.is_empty() || name.contains([' ', ':', '\r', '\n']) => {
                Err(format!("{name:?} is no header name"))
            }
            Value::String(value) => Ok((name, value)),
            _ => Err(format!("{name}: want a string")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads() {
        let want = vec![("x-__NAME__".to_string(), "hello".to_string())];
        assert_eq!(parse(br#"{"x-__NAME__": "hello"}"#), Ok(want));
        assert_eq!(parse(b""), Ok(vec![]));
    }

    #[test]
    fn refuses() {
        for config in ["[]", r#"{"x": 1}"#, r#"{"x y": "z"}"#, "{"] {
            assert!(parse(config.as_bytes()).is_err(), "{config}");
        }
    }
}
