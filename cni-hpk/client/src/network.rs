//! Conflists on disk.

use std::io;
use std::path::{Path, PathBuf};

use hpk_cni_types::env::is_valid_id;
use hpk_cni_types::{ConfError, conf};
use serde_json::Value;

use crate::error::Error;

/// A network: a parsed conflist. Dereferences to [`conf::NetworkList`].
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList(conf::NetworkList);

impl std::ops::Deref for NetworkList {
    type Target = conf::NetworkList;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<conf::NetworkList> for NetworkList {
    fn from(list: conf::NetworkList) -> Self {
        Self(list)
    }
}

impl NetworkList {
    pub fn into_inner(self) -> conf::NetworkList {
        self.0
    }

    /// Reads a conflist, or a single plugin's conf. Further plugins of a list
    /// may stand in `*.conf` of a folder beside it that has the network's name
    /// (libcni 1.3), unless the list says `loadOnlyInlinedPlugins`.
    pub fn load_file(path: &Path) -> Result<Self, Error> {
        let mut list = read_json(path)?;
        let plugins = further_plugins(path, &list)?;
        if !plugins.is_empty() {
            let inlined = list.get_mut("plugins").and_then(Value::as_array_mut);
            match inlined {
                Some(inlined) => inlined.extend(plugins),
                None => list["plugins"] = plugins.into(),
            }
        }
        conf::NetworkList::parse(list.to_string().as_bytes())
            .map(Self)
            .map_err(|source| Error::ParseConf {
                path: path.to_owned(),
                source,
            })
    }

    /// Reads the first of `*.conflist`, `*.conf`, `*.json` in `folder` by name,
    /// as CRI runtimes choose the default network. One that can't be read is
    /// an error, not passed over: the next would be another network.
    pub fn load_default(folder: &Path) -> Result<Self, Error> {
        let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.map_err(|source| Error::ReadConf {
            path: folder.to_owned(),
            source,
        })?;
        let mut paths: Vec<PathBuf> = entries
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|end| end == "conflist" || end == "conf" || end == "json")
            })
            .collect();
        paths.sort();
        match paths.first() {
            Some(path) => Self::load_file(path),
            None => Err(Error::NoConf(folder.to_owned())),
        }
    }
}

fn read_json(path: &Path) -> Result<Value, Error> {
    let json = std::fs::read(path).map_err(|source| Error::ReadConf {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&json).map_err(|source| Error::ParseConf {
        path: path.to_owned(),
        source: ConfError::Json(source),
    })
}

/// The plugins in the folder of the list's name, by file name.
fn further_plugins(path: &Path, list: &Value) -> Result<Vec<Value>, Error> {
    let only_inlined = match list.get("loadOnlyInlinedPlugins") {
        Some(Value::Bool(only)) => *only,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
        _ => false,
    };
    // A name that isn't one is refused when the list is parsed.
    let name = list.get("name").and_then(Value::as_str);
    let name = name.filter(|name| is_valid_id(name));
    let (Some(name), false, None) = (name, only_inlined, list.get("type")) else {
        return Ok(Vec::new());
    };
    let folder = path.with_file_name(name);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>(),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => Err(error),
    };
    let entries = entries.map_err(|source| Error::ReadConf {
        path: folder,
        source,
    })?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "conf"));
    files.sort();
    files.iter().map(|file| read_json(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hpk-cni-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn the_first_conf_by_name_is_the_default() {
        let folder = folder("default");
        for (file, name) in [
            ("20-b.conflist", "b"),
            ("10-a.conf", "a"),
            ("00-c.txt", "c"),
        ] {
            let json = format!(r#"{{"cniVersion":"1.0.0","name":"{name}","type":"ptp"}}"#);
            std::fs::write(folder.join(file), json).unwrap();
        }
        assert_eq!(NetworkList::load_default(&folder).unwrap().name, "a");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_malformed_first_conf_is_an_error_that_names_it() {
        let folder = folder("malformed");
        std::fs::write(folder.join("10-a.conflist"), "{").unwrap();
        let error = NetworkList::load_default(&folder).unwrap_err();
        assert!(error.to_string().contains("10-a.conflist"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn plugins_in_the_folder_of_the_networks_name_come_after_the_lists_own() {
        let folder = folder("further");
        std::fs::create_dir_all(folder.join("net")).unwrap();
        for (file, kind) in [("20-b.conf", "b"), ("10-a.conf", "a"), ("x.txt", "x")] {
            let json = format!(r#"{{"type":"{kind}"}}"#);
            std::fs::write(folder.join("net").join(file), json).unwrap();
        }
        let load = |keys: &str| {
            let json = format!(r#"{{"cniVersion":"1.1.0","name":"net"{keys}}}"#);
            std::fs::write(folder.join("10-net.conflist"), json).unwrap();
            let list = NetworkList::load_file(&folder.join("10-net.conflist")).unwrap();
            let types = list.plugins.iter().map(|it| it["type"].clone());
            types.collect::<Vec<_>>()
        };
        assert_eq!(load(r#","plugins":[{"type":"m"}]"#), ["m", "a", "b"]);
        assert_eq!(load(""), ["a", "b"]);
        let only = r#","plugins":[{"type":"m"}],"loadOnlyInlinedPlugins":true"#;
        assert_eq!(load(only), ["m"]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_empty_folder_says_so() {
        let folder = folder("empty");
        assert!(matches!(
            NetworkList::load_default(&folder),
            Err(Error::NoConf(_))
        ));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
