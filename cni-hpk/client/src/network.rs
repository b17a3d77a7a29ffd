//! Conflists on disk.

use std::path::{Path, PathBuf};

use hpk_cni_types::conf;

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
    /// Reads a conflist, or a single plugin's conf.
    pub fn load_file(path: &Path) -> Result<Self, Error> {
        let json = std::fs::read(path).map_err(|source| Error::ReadConf {
            path: path.to_owned(),
            source,
        })?;
        conf::NetworkList::parse(&json)
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
    fn an_empty_folder_says_so() {
        let folder = folder("empty");
        assert!(matches!(
            NetworkList::load_default(&folder),
            Err(Error::NoConf(_))
        ));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
