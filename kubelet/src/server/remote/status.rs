//! The last word on the error stream: a `v1.Status` in JSON, since protocol v4.

use serde_json::{Value, json};

/// How an exec or attach ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The process exited with this code.
    Exited(u32),
    /// It could not be run, or nothing is known of its end.
    Failed(String),
}

impl Status {
    /// For people.
    pub fn message(&self) -> String {
        match self {
            Self::Exited(code) => format!("command terminated with non-zero exit code: {code}"),
            Self::Failed(message) => message.clone(),
        }
    }

    pub fn to_json(&self) -> Vec<u8> {
        let value: Value = match self {
            Self::Exited(0) => json!({"metadata": {}, "status": "Success"}),
            Self::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }),
        };
        value.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_a_cause_in_text() {
        let json = String::from_utf8_lossy(&Status::Exited(3).to_json()).into_owned();
        assert!(
            json.contains(r#""causes":[{"message":"3","reason":"ExitCode"}]"#),
            "{json}"
        );
        assert!(json.contains(r#""reason":"NonZeroExitCode""#), "{json}");
    }

    #[test]
    fn exit_code_0_is_success() {
        let json = String::from_utf8_lossy(&Status::Exited(0).to_json()).into_owned();
        assert_eq!(json, r#"{"metadata":{},"status":"Success"}"#);
    }
}
