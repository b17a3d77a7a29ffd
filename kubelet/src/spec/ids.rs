//! Users and groups that this node lacks: refused, or run as root where the pod or the job says so. Pure.
//!
//! A job whose user has no subordinate ids has nodes on which root, which is that user, is all there
//! is. What may run as root there is also let believe that it changes owners and users: many an
//! image's program begins by that, and ends if it can't.

use hpk_userns::Mapped;
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext};
use thiserror::Error;

use super::process::User;

/// The pod's annotation that says whether its containers may run as root instead: `"true"` or `"false"`.
pub const SQUASH: &str = "slurm.hpk.io/squash-ids";

#[derive(Debug, Error)]
pub enum Error {
    #[error(
        "container {container:?} is to run as {asked}, which this node lacks: {why}; let it run as root (user 0), \
         or allow root in its place by the pod's annotation {SQUASH}: \"true\""
    )]
    NotMapped {
        container: String,
        asked: String,
        why: &'static str,
    },
    #[error("annotation {SQUASH} is {0:?}, neither \"true\" nor \"false\"")]
    Annotation(String),
}

/// Whom the container runs as here, and what of its wish that isn't.
#[derive(Debug, PartialEq, Eq)]
pub struct Fitted {
    pub user: User,
    /// Whether the kernel's refusals to change owners and users are kept from it.
    pub pretend: bool,
    /// Whether root is in another user's place: it gets no capabilities, as that user had none in effect.
    pub is_stand_in: bool,
    /// For events: their reasons and messages.
    pub news: Vec<(&'static str, String)>,
}

/// Lets the container have the ids it asks for, as far as they are `mapped`. `squash`: what holds
/// for pods that don't say.
///
/// # Errors
/// [`Error::NotMapped`] with the first id that may not be root's instead.
pub fn fit(
    pod: &Pod,
    container: &Container,
    wanted: User,
    mapped: &Mapped,
    squash: bool,
) -> Result<Fitted, Error> {
    let squash = may_squash(pod)?.unwrap_or(squash);
    let pretend = squash && mapped.is_single();
    let (wanted_uid, mut user) = (wanted.uid, wanted);
    let mut lost = Vec::new();
    if !mapped.has_user(user.uid) {
        lost.push(format!("user {}", user.uid));
        user.uid = 0;
    }
    if !mapped.has_group(user.gid) {
        lost.push(format!("group {}", user.gid));
        user.gid = 0;
    }
    let context = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let asked = context.and_then(|context| context.supplemental_groups.as_ref());
    let absent = |group: &&i64| u32::try_from(**group).is_ok_and(|group| !mapped.has_group(group));
    for group in asked.into_iter().flatten().filter(absent) {
        lost.push(format!("supplemental group {group}"));
    }
    user.additional_gids
        .retain(|group| mapped.has_group(*group));
    let of_volumes = context.and_then(|context| volumes_group(context, mapped));
    // Where root is all there is, it has access to what is root's. Others would have none.
    if let Some(group) = of_volumes
        && !mapped.is_single()
    {
        lost.push(format!("fsGroup {group}"));
        (user.uid, user.gid) = (0, 0);
    }
    let container = container.name.clone();
    let mut news = Vec::new();
    if let Some(group) = of_volumes {
        let message = format!(
            "volumes stay root's: this node has no group {group} (securityContext.fsGroup)"
        );
        news.push(("FsGroupNotMapped", message));
    }
    if pretend {
        let message = format!(
            "container {container:?}: changes of owners and users do nothing here and are reported as done ({SQUASH})"
        );
        news.push(("IdsPretended", message));
    }
    let is_stand_in = user.uid != wanted_uid;
    if lost.is_empty() {
        return Ok(Fitted {
            user,
            pretend,
            is_stand_in,
            news,
        });
    }
    let asked = lost.join(", ");
    if !squash {
        let why = match mapped.is_single() {
            true => "its job's user has no subordinate ids, so root is all there is",
            false => "the subordinate ids of its job's user don't reach that far",
        };
        return Err(Error::NotMapped {
            container,
            asked,
            why,
        });
    }
    let message = format!(
        "container {container:?} runs as root, which is the job's user, in place of {asked}: this node has no such ids"
    );
    news.insert(0, ("IdsSquashed", message));
    Ok(Fitted {
        user,
        pretend,
        is_stand_in,
        news,
    })
}

/// What the pod says.
fn may_squash(pod: &Pod) -> Result<Option<bool>, Error> {
    let annotations = pod.metadata.annotations.as_ref();
    match annotations
        .and_then(|all| all.get(SQUASH))
        .map(String::as_str)
    {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => Err(Error::Annotation(other.to_owned())),
    }
}

/// The group that the pod wants its volumes to have, where there is no such group.
fn volumes_group(context: &PodSecurityContext, mapped: &Mapped) -> Option<u32> {
    let group = u32::try_from(context.fs_group?).ok()?;
    (!mapped.has_group(group)).then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn user(uid: u32, groups: &[u32]) -> User {
        User {
            uid,
            gid: groups[0],
            additional_gids: groups.to_vec(),
            home: "/".to_owned(),
        }
    }

    /// As a node without subordinate ids does it.
    fn fitted(pod: serde_json::Value, wanted: User, squash: bool) -> Result<Fitted, Error> {
        let pod: Pod = serde_json::from_value(pod).expect("pod");
        let container = Container {
            name: "app".to_owned(),
            ..Container::default()
        };
        fit(&pod, &container, wanted, &Mapped::root_only(), squash)
    }

    #[test]
    fn root_is_let_through_without_the_groups_that_only_its_image_lists() {
        let fitted = fitted(json!({"metadata": {}}), user(0, &[0, 10]), false).expect("fits");
        assert_eq!(fitted.user, user(0, &[0]));
        assert!(!fitted.pretend && fitted.news.is_empty());
    }

    #[test]
    fn another_user_is_refused_by_number_with_what_to_do() {
        let error =
            fitted(json!({"metadata": {}}), user(1000, &[1000]), false).expect_err("refused");
        let text = error.to_string();
        assert!(text.contains("user 1000, group 1000"), "{text}");
        assert!(text.contains("no subordinate ids"), "{text}");
        assert!(text.contains("slurm.hpk.io/squash-ids: \"true\""), "{text}");
    }

    #[test]
    fn a_group_that_the_pod_asks_for_is_refused_too() {
        let pod = json!({"metadata": {}, "spec": {"containers": [],
            "securityContext": {"supplementalGroups": [0, 7]}}});
        let error = fitted(pod, user(0, &[0, 7]), false).expect_err("refused");
        assert!(
            error.to_string().contains("supplemental group 7,"),
            "{error}"
        );
    }

    #[test]
    fn by_annotation_or_by_the_jobs_word_it_is_root_and_that_is_said() {
        let says = |value: &str| json!({"metadata": {"annotations": {SQUASH: value}}});
        let squashed = fitted(says("true"), user(1000, &[1000, 5]), false).expect("squashed");
        assert_eq!(
            squashed.user,
            User {
                additional_gids: vec![],
                ..user(0, &[0])
            }
        );
        assert!(squashed.pretend);
        assert!(squashed.is_stand_in);
        let reasons: Vec<_> = squashed.news.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(reasons, ["IdsSquashed", "IdsPretended"]);
        let message = &squashed.news[0].1;
        assert!(message.contains("user 1000, group 1000"), "{message}");
        assert!(fitted(json!({"metadata": {}}), user(1000, &[0]), true).is_ok());
        // The pod's own word goes first.
        assert!(fitted(says("false"), user(1000, &[0]), true).is_err());
        let error = fitted(says("yes"), user(0, &[0]), true).expect_err("refused");
        assert!(error.to_string().contains("\"yes\""), "{error}");
    }

    #[test]
    fn a_group_of_volumes_is_no_reason_to_refuse_a_pod() {
        let pod = json!({"metadata": {}, "spec": {"containers": [], "securityContext": {"fsGroup": 2000}}});
        let fitted = fitted(pod, user(0, &[0, 2000]), false).expect("fits");
        assert_eq!(fitted.user.additional_gids, [0]);
        assert!(fitted.news[0].1.contains("2000") && !fitted.is_stand_in);
    }

    #[test]
    fn a_group_of_volumes_beyond_a_range_of_ids_is_refused_or_all_is_roots() {
        let pod = |squash: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"annotations": {SQUASH: squash}},
                "spec": {"containers": [], "securityContext": {"fsGroup": 1_000_650_000}}}))
            .expect("pod")
        };
        let some = Mapped::of("0 1000 1\n1 100000 65536");
        let container = Container::default();
        let asked = || user(1000, &[1000]);
        let error = fit(&pod("false"), &container, asked(), &some, false).expect_err("refused");
        assert!(error.to_string().contains("fsGroup 1000650000"), "{error}");
        let fitted = fit(&pod("true"), &container, asked(), &some, false).expect("squashed");
        assert_eq!((fitted.user.uid, fitted.is_stand_in), (0, true));
    }

    #[test]
    fn where_all_ids_are_mapped_nothing_changes() {
        let pod = Pod::default();
        let all = fit(
            &pod,
            &Container::default(),
            user(1000, &[7, 8]),
            &Mapped::all(),
            true,
        );
        let all = all.expect("fits");
        let changed = (all.pretend, all.is_stand_in, all.news.is_empty());
        assert_eq!(all.user, user(1000, &[7, 8]));
        assert_eq!(changed, (false, false, true));
    }
}
