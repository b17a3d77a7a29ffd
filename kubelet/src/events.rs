//! Events on pods and the node, sent in the background, repeated ones counted instead of repeated.
//!
//! core/v1 Events, as the stock kubelet sends them: the same object, reason and message within the
//! process's life raise `count` of the first.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

use crate::pod::restart::Role;

/// What kind of news it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Warning,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Normal => "Normal",
            Kind::Warning => "Warning",
        }
    }
}

#[derive(Debug)]
struct News {
    about: ObjectReference,
    kind: Kind,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Takes events; never blocks its caller. If the API server is far behind, events are dropped.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: mpsc::Sender<News>,
}

impl Recorder {
    /// Starts the sending task.
    pub fn start(client: Client, node: &str) -> Self {
        let (sender, receiver) = mpsc::channel(1024);
        tokio::spawn(send_all(client, node.to_owned(), receiver));
        Self { sender }
    }

    pub fn pod(&self, pod: &Pod, kind: Kind, reason: &str, message: String) {
        self.send(pod_reference(pod, None), kind, reason, message);
    }

    pub fn container(
        &self,
        pod: &Pod,
        container: &str,
        role: Role,
        kind: Kind,
        reason: &str,
        message: String,
    ) {
        let path = format!("spec.{}{{{container}}}", role.field());
        self.send(pod_reference(pod, Some(path)), kind, reason, message);
    }

    pub fn node(&self, node: &Node, kind: Kind, reason: &str, message: String) {
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            api_version: Some("v1".to_owned()),
            name: node.metadata.name.clone(),
            uid: node.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        self.send(about, kind, reason, message);
    }

    fn send(&self, about: ObjectReference, kind: Kind, reason: &str, message: String) {
        let news = News {
            about,
            kind,
            reason: reason.to_owned(),
            message,
            at: Timestamp::now(),
        };
        if self.sender.try_send(news).is_err() {
            debug!(reason, "an event was dropped: too many wait to be sent");
        }
    }
}

fn pod_reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        api_version: Some("v1".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

/// uid, field path, reason, message.
type Key = (String, String, String, String);

struct Sent {
    name: String,
    count: i32,
}

async fn send_all(client: Client, node: String, mut receiver: mpsc::Receiver<News>) {
    let mut sent: HashMap<Key, Sent> = HashMap::new();
    while let Some(news) = receiver.recv().await {
        let key = (
            news.about.uid.clone().unwrap_or_default(),
            news.about.field_path.clone().unwrap_or_default(),
            news.reason.clone(),
            news.message.clone(),
        );
        // Events of the node itself live in the namespace `default`.
        let namespace = news
            .about
            .namespace
            .as_deref()
            .unwrap_or("default")
            .to_owned();
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        if let Some(earlier) = sent.get_mut(&key) {
            earlier.count += 1;
            let patch = json!({"count": earlier.count, "lastTimestamp": Time(news.at)});
            let patched = api
                .patch(
                    &earlier.name,
                    &PatchParams::default(),
                    &Patch::Strategic(patch),
                )
                .await;
            if patched.is_ok() {
                continue;
            }
        }
        let event = new_event(&news, &namespace, &node);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if sent.len() > 4096 {
                    sent.clear();
                }
                sent.insert(key, Sent { name, count: 1 });
            }
            Err(error) => debug!(%error, name, "can't send an event"),
        }
    }
}

fn new_event(news: &News, namespace: &str, node: &str) -> Event {
    let object = news.about.name.as_deref().unwrap_or_default();
    let name = format!("{object}.{:x}", news.at.as_nanosecond());
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: news.about.clone(),
        type_: Some(news.kind.as_str().to_owned()),
        reason: Some(news.reason.clone()),
        message: Some(news.message.chars().take(1024).collect()),
        source: Some(EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(node.to_owned()),
        }),
        first_timestamp: Some(Time(news.at)),
        last_timestamp: Some(Time(news.at)),
        count: Some(1),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}
