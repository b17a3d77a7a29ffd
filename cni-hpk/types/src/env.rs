//! What a runtime hands a plugin in its environment (spec section 2,
//! "Parameters"), checked as the reference library checks it.

use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{ErrorCode, ErrorObject};

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Whether this is about one attachment, not the whole network.
    fn names_an_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

impl FromStr for Command {
    type Err = ErrorObject;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [
            Self::Add,
            Self::Del,
            Self::Check,
            Self::Gc,
            Self::Status,
            Self::Version,
        ]
        .into_iter()
        .find(|command| command.as_str() == text)
        .ok_or_else(|| invalid(format!("unknown CNI_COMMAND: {text:?}")))
    }
}

/// `CNI_ARGS`: pairs `KEY=VALUE` joined by `;`, in the order given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args(pub Vec<(String, String)>);

const IGNORE_UNKNOWN: &str = "IgnoreUnknown";

impl Args {
    /// Parses the variable; an entry without `=` is an error.
    pub fn parse(text: &str) -> Result<Self, ErrorObject> {
        let mut pairs = Vec::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| invalid(format!("CNI_ARGS: {pair:?} is not KEY=VALUE")))?;
            pairs.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self(pairs))
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// Whether keys a plugin doesn't know are to be passed over.
    pub fn ignore_unknown(&self) -> bool {
        matches!(
            self.get(IGNORE_UNKNOWN)
                .map(str::to_ascii_lowercase)
                .as_deref(),
            Some("1" | "true")
        )
    }

    /// Refuses keys outside `known`, unless `IgnoreUnknown` is set.
    pub fn refuse_unknown(&self, known: &[&str]) -> Result<(), ErrorObject> {
        if self.ignore_unknown() {
            return Ok(());
        }
        let is_known = |key: &str| key == IGNORE_UNKNOWN || known.contains(&key);
        match self.0.iter().find(|(key, _)| !is_known(key)) {
            Some((key, value)) => Err(ErrorObject {
                details: format!("known are {}; or give IgnoreUnknown=1", known.join(", ")),
                ..invalid(format!("CNI_ARGS: unknown key {key:?} (value {value:?})"))
            }),
            None => Ok(()),
        }
    }

    /// The variable's text.
    pub fn encode(pairs: &[(String, String)]) -> String {
        pairs
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(";")
    }
}

/// The environment of one plugin run, valid for its command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    pub command: Command,
    /// Empty for GC, STATUS and VERSION.
    pub container_id: String,
    /// Path of the network namespace; may be absent in DEL.
    pub netns: Option<PathBuf>,
    /// Empty for GC, STATUS and VERSION.
    pub ifname: String,
    /// Empty in DEL.
    pub args: Args,
    /// Folders to look for other plugins in.
    pub path: Vec<PathBuf>,
}

impl Invocation {
    /// Reads the variables through `lookup` (an environment, or a test's map).
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ErrorObject> {
        let value = |name: &str| lookup(name).filter(|text| !text.is_empty());
        let command: Command = value("CNI_COMMAND")
            .ok_or_else(|| invalid("CNI_COMMAND is not set".to_owned()))?
            .parse()?;
        if command == Command::Version {
            return Ok(Self {
                command,
                container_id: String::new(),
                netns: None,
                ifname: String::new(),
                args: Args::default(),
                path: Vec::new(),
            });
        }
        let mut missing = Vec::new();
        let mut required = |name: &'static str, needed: bool| {
            let found = value(name);
            if needed && found.is_none() {
                missing.push(name);
            }
            found.unwrap_or_default()
        };
        let attachment = command.names_an_attachment();
        let container_id = required("CNI_CONTAINERID", attachment);
        let netns = required(
            "CNI_NETNS",
            matches!(command, Command::Add | Command::Check),
        );
        let ifname = required("CNI_IFNAME", attachment);
        // The specification wants it for GC; without it no other plugin is found.
        let path = required("CNI_PATH", command == Command::Gc);
        if !missing.is_empty() {
            return Err(invalid(format!(
                "{} wants {}",
                command.as_str(),
                missing.join(", ")
            )));
        }
        let (container_id, ifname) = match attachment {
            true => (container_id, ifname),
            false => (String::new(), String::new()),
        };
        if attachment {
            check_container_id(&container_id)?;
            check_ifname(&ifname)?;
        }
        Ok(Self {
            command,
            container_id,
            netns: Some(netns)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            ifname,
            args: match command {
                // What ADD would have refused must not keep DEL from cleaning up.
                Command::Del => Args::default(),
                _ => Args::parse(&value("CNI_ARGS").unwrap_or_default())?,
            },
            path: std::env::split_paths(&path)
                .filter(|folder| !folder.as_os_str().is_empty())
                .collect(),
        })
    }

    /// Reads this process's environment.
    pub fn from_env() -> Result<Self, ErrorObject> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }
}

fn invalid(msg: String) -> ErrorObject {
    ErrorObject::new(ErrorCode::InvalidEnvironment, msg)
}

/// The rule for container ids and network names: starts with a letter or
/// digit, then letters, digits, `_`, `.`, `-`.
pub fn is_valid_id(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Refuses an id that could leave its folder or isn't one at all.
pub fn check_container_id(id: &str) -> Result<(), ErrorObject> {
    if is_valid_id(id) {
        return Ok(());
    }
    Err(invalid(format!("CNI_CONTAINERID {id:?} is not a valid id")))
}

/// The kernel's rule for interface names (`dev_valid_name`), and at most 15 bytes.
pub fn check_ifname(name: &str) -> Result<(), ErrorObject> {
    let bad = name.is_empty()
        || name.len() > 15
        || matches!(name, "." | "..")
        || name
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace());
    if bad {
        return Err(invalid(format!(
            "CNI_IFNAME {name:?} is not a valid interface name"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invoke(pairs: &[(&str, &str)]) -> Result<Invocation, ErrorObject> {
        Invocation::from_lookup(|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn version_needs_nothing_but_the_command() {
        assert!(invoke(&[("CNI_COMMAND", "VERSION")]).is_ok());
    }

    #[test]
    fn add_names_everything_that_is_missing() {
        let error = invoke(&[("CNI_COMMAND", "ADD"), ("CNI_PATH", "/p")]).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidEnvironment);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            assert!(error.msg.contains(name), "{}", error.msg);
        }
    }

    #[test]
    fn del_goes_without_a_netns() {
        let invocation = invoke(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/a:/b"),
        ])
        .unwrap();
        assert_eq!(invocation.netns, None);
        assert_eq!(invocation.path.len(), 2);
    }

    #[test]
    fn ids_that_climb_out_of_a_folder_are_refused() {
        for id in ["", "../x", "a/b", ".hidden", "a b"] {
            assert!(check_container_id(id).is_err(), "{id:?}");
        }
        assert!(check_container_id("0a-b_c.d").is_ok());
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for name in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-letters-"] {
            assert!(check_ifname(name).is_err(), "{name:?}");
        }
        assert!(check_ifname("fifteen-letters").is_ok());
    }

    #[test]
    fn unknown_args_are_refused_unless_ignored() {
        let args = Args::parse("K8S_POD_NAME=web;FOO=bar").unwrap();
        assert!(args.refuse_unknown(&["K8S_POD_NAME"]).is_err());
        let args = Args::parse("IgnoreUnknown=1;K8S_POD_NAME=web;FOO=bar").unwrap();
        assert!(args.refuse_unknown(&["K8S_POD_NAME"]).is_ok());
        assert_eq!(args.get("FOO"), Some("bar"));
    }

    #[test]
    fn an_arg_without_a_value_is_an_error_but_in_del() {
        assert!(Args::parse("FOO").is_err());
        let del = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "FOO"),
        ];
        assert!(invoke(&del).is_ok());
    }

    #[test]
    fn gc_alone_wants_a_path() {
        let error = invoke(&[("CNI_COMMAND", "GC")]).unwrap_err();
        assert!(error.msg.contains("CNI_PATH"), "{}", error.msg);
        let status = [("CNI_COMMAND", "STATUS"), ("CNI_CONTAINERID", "../x")];
        assert_eq!(invoke(&status).unwrap().container_id, "");
    }
}
