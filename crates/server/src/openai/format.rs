//! The form of an answer: `response_format` of chats and completions, `text.format` of responses.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;

/// What stands between the parts of JSON: models write a space or a line with an indent, and one that is made to end
/// must not go on with spaces for ever.
const WHITESPACE: &str = "[ ]|\\n[ ]{0,24}";

/// The form of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// Free text.
    Text,
    /// JSON that a schema describes.
    Json {
        /// A JSON schema.
        schema: Value,
        /// Refuse what can't be followed exactly, rather than follow it roughly.
        is_strict: bool,
    },
}

impl Format {
    /// Reads the object `name` of a body.
    ///
    /// # Errors
    /// What is wrong, by name.
    pub fn read(fields: &Fields<'_>, name: &str) -> Result<Self, ApiError> {
        let Some(format) = fields.object(name, "")? else {
            return Ok(Self::Text);
        };
        let must = "{\"type\": \"text\"}, {\"type\": \"json_object\"} or {\"type\": \"json_schema\", …} with a schema";
        match format.string("type").ok().flatten() {
            Some("text") => Ok(Self::Text),
            Some("json_object") => Ok(Self::Json {
                schema: json!({"type": "object"}),
                is_strict: false,
            }),
            Some("json_schema") => {
                // Chats nest it, responses do not.
                let inner = match format.value("json_schema") {
                    Some(Value::Object(inner)) => Some(inner),
                    Some(_) => None,
                    None => fields.value(name).and_then(Value::as_object),
                };
                inner
                    .and_then(described)
                    .ok_or_else(|| fields.wrong(name, must))
            }
            _ => Err(fields.wrong(name, must)),
        }
    }

    /// A grammar's expression for it; `None` for free text.
    pub fn schema_rule(&self) -> Option<String> {
        match self {
            Self::Text => None,
            Self::Json { schema, is_strict } => Some(json_rule(schema, *is_strict)),
        }
    }

    /// The whole grammar; `None` for free text.
    pub fn grammar(&self) -> Option<String> {
        Some(format!("start: {}", self.schema_rule()?))
    }
}

fn described(inner: &Map<String, Value>) -> Option<Format> {
    let schema = match inner.get("schema") {
        None | Some(Value::Null) => json!({}),
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(_) => return None,
    };
    let is_strict = match inner.get("strict") {
        None | Some(Value::Null) => false,
        Some(strict) => strict.as_bool()?,
    };
    Some(Format::Json { schema, is_strict })
}

/// A grammar's expression for JSON of a schema.
pub fn json_rule(schema: &Value, is_strict: bool) -> String {
    let mut schema = schema.clone();
    if let Some(map) = schema.as_object_mut() {
        let options = json!({
            "whitespace_pattern": WHITESPACE,
            "lenient": !is_strict,
            "json_allow_general_unicode_escapes": false,
        });
        map.insert("x-guidance".into(), options);
    }
    format!("%json {schema}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Format, ApiError> {
        Format::read(&Fields::of(&body)?, "response_format")
    }

    #[test]
    fn both_notations_of_a_schema_are_read() {
        let schema = json!({"type": "integer"});
        let nested = json!({"response_format": {"type": "json_schema", "json_schema":
            {"name": "n", "strict": true, "schema": schema}}});
        let flat = json!({"response_format":
            {"type": "json_schema", "name": "n", "strict": true, "schema": schema}});
        let expected = Format::Json {
            schema,
            is_strict: true,
        };
        assert_eq!(read(nested), Ok(expected.clone()));
        assert_eq!(read(flat), Ok(expected));
        assert_eq!(read(json!({})), Ok(Format::Text));
    }

    #[test]
    fn others_are_refused_by_name() {
        for format in [
            json!({}),
            json!({"type": "xml"}),
            json!({"type": "json_schema", "json_schema": 5}),
            json!({"type": "json_schema", "json_schema": {"schema": []}}),
            json!("json_object"),
        ] {
            let error = read(json!({"response_format": format})).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("response_format"));
        }
    }
}
