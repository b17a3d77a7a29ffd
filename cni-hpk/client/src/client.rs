//! The operations on a network, as libcni does them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hpk_cni_types::{AddResult, Args, Command, SpecVersion};
use serde_json::{Map, Value, json};
use tracing::warn;

use crate::cache::{Cache, Entry};
use crate::error::Error;
use crate::exec::{self, Parameters};
use crate::network::NetworkList;

/// One interface of one container on one network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attachment {
    /// Unique on the node: for pods the sandbox's id.
    pub container_id: String,
    /// Path of the network namespace; empty in a DEL after it is gone.
    pub netns: PathBuf,
    /// Name of the interface inside.
    pub ifname: String,
    /// `CNI_ARGS`, in order; include `("IgnoreUnknown", "1")` where plugins
    /// that don't know them may be in the chain.
    pub args: Vec<(String, String)>,
    /// Capability arguments (`portMappings`, `bandwidth`, …). Each goes to
    /// the plugins whose conf has that capability.
    pub capability_args: Map<String, Value>,
}

/// How long one plugin may take, as a kubelet's runtime-request-timeout. (The spec sets no limit.)
const LIMIT: Duration = Duration::from_secs(120);

/// Runs plugins. Cheap to clone; holds no state but paths.
#[derive(Clone, Debug)]
pub struct Client {
    plugin_dirs: Vec<PathBuf>,
    cache: Cache,
    limit: Duration,
}

impl Client {
    /// `cache_dir` is what libcni calls its cache folder (it uses
    /// `/var/lib/cni`); results go to `results` below it.
    pub fn new(plugin_dirs: Vec<PathBuf>, cache_dir: PathBuf) -> Self {
        Self {
            plugin_dirs,
            cache: Cache::new(&cache_dir),
            limit: LIMIT,
        }
    }

    async fn run(
        &self,
        plugin: &str,
        parameters: &Parameters<'_>,
        conf: &Value,
    ) -> Result<Option<Value>, Error> {
        exec::run(plugin, &self.plugin_dirs, parameters, conf, self.limit).await
    }

    /// Runs every plugin's ADD in order, each given the result before, and
    /// caches the last. If one fails, what was done is undone by DEL.
    pub async fn add(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
    ) -> Result<AddResult, Error> {
        match self.add_chain(list, attachment).await {
            Ok(result) => Ok(result),
            Err(add) => match self.del(list, attachment).await {
                Ok(()) => Err(add),
                Err(undo) => Err(Error::AddAndUndo {
                    add: Box::new(add),
                    undo: Box::new(undo),
                }),
            },
        }
    }

    async fn add_chain(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
    ) -> Result<AddResult, Error> {
        let mut previous: Option<Value> = None;
        let mut parsed = AddResult::default();
        for plugin in &list.plugins {
            let conf = plugin_conf(list, plugin, &attachment.capability_args, previous.take());
            let parameters = Parameters::of(Command::Add, attachment);
            let name = plugin_type(plugin);
            let answer = self.run(name, &parameters, &conf).await?;
            let invalid = |output: String| Error::Answer {
                plugin: name.to_owned(),
                command: "ADD",
                status: "success".to_owned(),
                output,
            };
            let answer = answer.ok_or_else(|| invalid("no result".to_owned()))?;
            parsed = serde_json::from_value(answer.clone())
                .map_err(|error| invalid(format!("not a result: {error}")))?;
            previous = Some(answer);
        }
        let result = previous.unwrap_or_else(|| parsed.to_json(list.cni_version));
        self.cache.store(&Entry::new(list, attachment, result))?;
        Ok(parsed)
    }

    /// Runs every plugin's DEL in reverse order, with the cached result, and
    /// forgets the attachment. One that was never added is fine. Stops at the
    /// first failure (spec section 3) and keeps the cache, so that a second
    /// DEL has all it needs.
    pub async fn del(&self, list: &NetworkList, attachment: &Attachment) -> Result<(), Error> {
        let cached = match self.cached(list, attachment) {
            // As libcni: without it the plugins still remove what they can.
            Err(Error::CacheFormat { path, source }) => {
                warn!(path = %path.display(), %source, "cached result is lost");
                None
            }
            other => other?,
        };
        let previous = cached.as_ref().map(|entry| in_version(list, entry));
        let attachment = complete(attachment, cached.as_ref());
        for plugin in list.plugins.iter().rev() {
            let previous = previous.clone().filter(|_| list.cni_version.has_check());
            let conf = plugin_conf(list, plugin, &attachment.capability_args, previous);
            let parameters = Parameters::of(Command::Del, &attachment);
            self.run(plugin_type(plugin), &parameters, &conf).await?;
        }
        self.cache
            .remove(&list.name, &attachment.container_id, &attachment.ifname)
    }

    /// Runs every plugin's CHECK in order. A list with `disableCheck` passes.
    pub async fn check(&self, list: &NetworkList, attachment: &Attachment) -> Result<(), Error> {
        if !list.cni_version.has_check() {
            return Err(not_in_version(list, "CHECK"));
        }
        if list.disable_check {
            return Ok(());
        }
        let cached = self
            .cached(list, attachment)?
            .ok_or_else(|| Error::UnknownAttachment {
                network: list.name.clone(),
                container_id: attachment.container_id.clone(),
                ifname: attachment.ifname.clone(),
            })?;
        let attachment = complete(attachment, Some(&cached));
        for plugin in &list.plugins {
            let previous = Some(in_version(list, &cached));
            let conf = plugin_conf(list, plugin, &attachment.capability_args, previous);
            let parameters = Parameters::of(Command::Check, &attachment);
            self.run(plugin_type(plugin), &parameters, &conf).await?;
        }
        Ok(())
    }

    /// Asks every plugin whether it could take an ADD now. Versions before
    /// 1.1.0, and plugins that don't know STATUS, say yes.
    pub async fn status(&self, list: &NetworkList) -> Result<(), Error> {
        if !list.cni_version.has_gc_and_status() {
            for plugin in &list.plugins {
                exec::find_plugin(plugin_type(plugin), &self.plugin_dirs)?;
            }
            return Ok(());
        }
        for plugin in &list.plugins {
            let conf = plugin_conf(list, plugin, &Map::new(), None);
            let parameters = Parameters::of_network(Command::Status);
            match self.run(plugin_type(plugin), &parameters, &conf).await {
                Err(error) if exec::is_unknown_command(&error) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// DELs every cached attachment of the network that isn't among `valid`
    /// (container id, interface), then lets each plugin collect what the cache
    /// doesn't know of. Goes on after a failure and returns all of them.
    ///
    /// A list with `disableGC` is left alone.
    pub async fn gc(&self, list: &NetworkList, valid: &[(String, String)]) -> Result<(), Error> {
        if list.disable_gc {
            return Ok(());
        }
        let mut failures = Vec::new();
        for entry in self.cache.load_all(&list.name)? {
            let wanted = valid
                .iter()
                .any(|(id, ifname)| *id == entry.container_id && *ifname == entry.if_name);
            if !wanted && let Err(error) = self.del(list, &entry.attachment()).await {
                failures.push(error);
            }
        }
        if list.cni_version.has_gc_and_status() {
            let attachments: Vec<Value> = valid
                .iter()
                .map(|(id, ifname)| json!({"containerID": id, "ifname": ifname}))
                .collect();
            for plugin in &list.plugins {
                let mut conf = plugin_conf(list, plugin, &Map::new(), None);
                conf["cni.dev/valid-attachments"] = attachments.clone().into();
                // libcni writes both keys; some plugins read only this one.
                conf["cni.dev/attachments"] = attachments.clone().into();
                let parameters = Parameters::of_network(Command::Gc);
                let name = plugin_type(plugin);
                match self.run(name, &parameters, &conf).await {
                    Err(error) if !exec::is_unknown_command(&error) => failures.push(error),
                    _ => {}
                }
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(Error::Gc {
            network: list.name.clone(),
            failures,
        })
    }

    /// The cached result of an attachment, e.g. for a pod adopted after a
    /// restart. `None` if it was never added, or is deleted.
    pub fn cached_result(
        &self,
        list: &NetworkList,
        container_id: &str,
        ifname: &str,
    ) -> Result<Option<AddResult>, Error> {
        let entry = self.cache.load(&list.name, container_id, ifname)?;
        entry
            .map(|entry| serde_json::from_value(entry.result))
            .transpose()
            .map_err(|source| Error::CacheFormat {
                path: PathBuf::from(format!("{}-{container_id}-{ifname}", list.name)),
                source,
            })
    }

    /// Every cached attachment of the network, as ADD was asked for it.
    pub fn cached_attachments(&self, list: &NetworkList) -> Result<Vec<Attachment>, Error> {
        let entries = self.cache.load_all(&list.name)?;
        Ok(entries.iter().map(Entry::attachment).collect())
    }

    fn cached(&self, list: &NetworkList, of: &Attachment) -> Result<Option<Entry>, Error> {
        self.cache.load(&list.name, &of.container_id, &of.ifname)
    }
}

impl<'a> Parameters<'a> {
    fn of(command: Command, attachment: &'a Attachment) -> Self {
        Self {
            command,
            container_id: &attachment.container_id,
            netns: Some(attachment.netns.as_path()).filter(|path| *path != Path::new("")),
            ifname: &attachment.ifname,
            args: Args::encode(&attachment.args),
        }
    }

    fn of_network(command: Command) -> Self {
        Self {
            command,
            container_id: "",
            netns: None,
            ifname: "",
            args: String::new(),
        }
    }
}

/// What the caller left out (it may know no more than the id after a
/// restart) comes from the cache.
fn complete(attachment: &Attachment, cached: Option<&Entry>) -> Attachment {
    let mut attachment = attachment.clone();
    if let Some(entry) = cached.map(Entry::attachment) {
        if attachment.args.is_empty() {
            attachment.args = entry.args;
        }
        if attachment.capability_args.is_empty() {
            attachment.capability_args = entry.capability_args;
        }
    }
    attachment
}

/// The cached result in the list's version, which may have been changed since.
fn in_version(list: &NetworkList, entry: &Entry) -> Value {
    let version = entry.result.get("cniVersion").and_then(Value::as_str);
    if version == Some(list.cni_version.as_str()) {
        return entry.result.clone();
    }
    match serde_json::from_value::<AddResult>(entry.result.clone()) {
        Ok(result) => result.to_json(list.cni_version),
        Err(_) => entry.result.clone(),
    }
}

fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// A plugin's execution configuration, derived from its conf (spec section 3,
/// "Deriving execution configuration from plugin configuration").
fn plugin_conf(
    list: &NetworkList,
    plugin: &Map<String, Value>,
    capability_args: &Map<String, Value>,
    previous: Option<Value>,
) -> Value {
    let mut conf = plugin.clone();
    conf.insert("name".to_owned(), list.name.clone().into());
    conf.insert("cniVersion".to_owned(), list.cni_version.as_str().into());
    let wanted: Map<String, Value> = plugin
        .get("capabilities")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, enabled)| **enabled == Value::Bool(true))
        .filter_map(|(name, _)| Some((name.clone(), capability_args.get(name)?.clone())))
        .collect();
    if !wanted.is_empty() {
        conf.insert("runtimeConfig".to_owned(), Value::Object(wanted));
    }
    // What was asked for is in `runtimeConfig`; the list's own key isn't passed on.
    conf.remove("capabilities");
    match previous {
        Some(result) => conf.insert("prevResult".to_owned(), result),
        None => conf.remove("prevResult"),
    };
    Value::Object(conf)
}

fn not_in_version(list: &NetworkList, command: &'static str) -> Error {
    let version: SpecVersion = list.cni_version;
    Error::NotInVersion {
        network: list.name.clone(),
        version,
        command,
    }
}

#[cfg(test)]
mod tests;
