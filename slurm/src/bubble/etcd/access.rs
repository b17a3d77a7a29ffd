//! Who may do what in etcd, told apart by the common names of their certificates: the API server
//! everything, the nodes' network daemons what is theirs.
//!
//! No user has a password, so only a certificate makes one; `root`, without which etcd switches
//! no access control on, has none.

use anyhow::{Context as _, Result};
use etcd_client::{Client, Permission, UserAddOptions};

use crate::pki::{ETCD_API_USER, ETCD_NODE_USER};
use crate::settings::{FLANNEL_PREFIX, OVERLAY_PREFIX};

/// etcd's own name for the user and the role that may do everything.
const ROOT: &str = "root";
const NODE_ROLE: &str = "node";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    AddRole(&'static str),
    /// To the nodes' role.
    MayRead(String),
    /// To the nodes' role: every key that begins so.
    MayWriteBelow(String),
    AddUser(&'static str),
    Join {
        user: &'static str,
        role: &'static str,
    },
    Enable,
}

/// What is to be done where etcd knows these already, in order.
fn plan(users: &[String], roles: &[String]) -> Vec<Step> {
    let mut steps = Vec::new();
    if !roles.iter().any(|role| role == NODE_ROLE) {
        steps.push(Step::AddRole(NODE_ROLE));
    }
    steps.extend([
        Step::MayRead(format!("{FLANNEL_PREFIX}/config")),
        // flanneld lists and watches the folder without the slash at its end.
        Step::MayWriteBelow(format!("{FLANNEL_PREFIX}/subnets")),
        Step::MayWriteBelow(OVERLAY_PREFIX.to_owned()),
    ]);
    for (user, role) in [
        (ROOT, ROOT),
        (ETCD_API_USER, ROOT),
        (ETCD_NODE_USER, NODE_ROLE),
    ] {
        if !users.iter().any(|have| have == user) {
            steps.push(Step::AddUser(user));
        }
        steps.push(Step::Join { user, role });
    }
    steps.push(Step::Enable);
    steps
}

/// Makes the users and roles, and switches access control on. May be done again at any point.
pub async fn set_up(client: &mut Client) -> Result<()> {
    let users = client.user_list().await.context("listing etcd's users")?;
    let roles = client.role_list().await.context("listing etcd's roles")?;
    for step in plan(users.users(), roles.roles()) {
        apply(client, &step)
            .await
            .with_context(|| format!("setting up etcd's users: {step:?}"))?;
    }
    Ok(())
}

async fn apply(client: &mut Client, step: &Step) -> Result<(), etcd_client::Error> {
    match step {
        Step::AddRole(role) => client.role_add(*role).await.map(drop),
        Step::MayRead(key) => grant(client, Permission::read(key.as_str())).await,
        Step::MayWriteBelow(prefix) => {
            grant(
                client,
                Permission::read_write(prefix.as_str()).with_prefix(),
            )
            .await
        }
        Step::AddUser(user) => {
            let options = UserAddOptions::new().with_no_pwd();
            client.user_add(*user, "", Some(options)).await.map(drop)
        }
        Step::Join { user, role } => client.user_grant_role(*user, *role).await.map(drop),
        Step::Enable => client.auth_enable().await.map(drop),
    }
}

async fn grant(client: &mut Client, permission: Permission) -> Result<(), etcd_client::Error> {
    let granted = client.role_grant_permission(NODE_ROLE, permission).await;
    granted.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bubble::order::until;
    use crate::pki;
    use etcd_client::{Certificate, ConnectOptions, GetOptions, Identity, TlsOptions};

    #[test]
    fn only_the_api_server_gets_everything() {
        let steps = plan(&[], &[]);
        let with_everything: Vec<_> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Join { user, role: ROOT } => Some(*user),
                _ => None,
            })
            .collect();
        assert_eq!(with_everything, ["root", "kube-apiserver"]);
        assert_eq!(steps.last(), Some(&Step::Enable));
    }

    #[test]
    fn what_is_there_is_not_made_again() {
        let all = plan(&[], &[]);
        let users = ["root", "kube-apiserver", "hpk-node"].map(str::to_owned);
        let rest = plan(&users, &[NODE_ROLE.to_owned()]);
        let made = |steps: &[Step]| {
            let adds = |step: &&Step| matches!(step, Step::AddUser(_) | Step::AddRole(_));
            steps.iter().filter(adds).count()
        };
        assert_eq!((made(&all), made(&rest)), (4, 0));
        assert_eq!(rest.len(), all.len() - 4);
    }

    #[test]
    fn a_node_may_not_change_the_network() {
        let config = format!("{FLANNEL_PREFIX}/config");
        for step in plan(&[], &[]) {
            if let Step::MayWriteBelow(prefix) = step {
                assert!(!config.starts_with(&prefix), "{prefix}");
                assert!(!"/registry/secrets".starts_with(&prefix), "{prefix}");
            }
        }
    }

    #[tokio::test]
    #[ignore = "needs etcd"]
    async fn a_real_etcd_gives_a_node_what_is_its_own_and_no_more() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let wanted = pki::plan_certificates(
            &pki::Controller {
                names: Vec::new(),
                domain: "cluster.local".into(),
                kubernetes_ip: "10.43.0.1".parse().unwrap(),
            },
            &[],
        );
        for (name, text) in pki::issue("7", &wanted, pki::last_day(None)).unwrap() {
            std::fs::write(at(&name), text).unwrap();
        }
        let free = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let (url, peer) = [free(), free()]
            .map(|port| format!("https://127.0.0.1:{port}"))
            .into();
        let option = |name: &str, value: &str| format!("--{name}={value}");
        let file = |name: &str, file: &str| option(name, at(file).to_str().unwrap());
        let _etcd = tokio::process::Command::new("etcd")
            .args([
                file("data-dir", "data"),
                option("listen-client-urls", &url),
                option("advertise-client-urls", &url),
                option("listen-peer-urls", &peer),
                option("initial-advertise-peer-urls", &peer),
                option("initial-cluster", &format!("default={peer}")),
                option("client-cert-auth", "true"),
                file("cert-file", "etcd.crt"),
                file("key-file", "etcd.key"),
                file("trusted-ca-file", "etcd-ca.crt"),
                option("peer-client-cert-auth", "true"),
                file("peer-cert-file", "etcd.crt"),
                file("peer-key-file", "etcd.key"),
                file("peer-trusted-ca-file", "etcd-ca.crt"),
                option("unsafe-no-fsync", "true"),
                option("log-level", "error"),
            ])
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let connect = |name: &str| {
            let read = |name: String| std::fs::read(at(&name)).unwrap();
            let identity =
                Identity::from_pem(read(format!("{name}.crt")), read(format!("{name}.key")));
            let tls = TlsOptions::new()
                .ca_certificate(Certificate::from_pem(read("etcd-ca.crt".into())))
                .identity(identity);
            let options = ConnectOptions::new().with_tls(tls);
            let url = url.clone();
            async move { Client::connect([url], Some(options)).await }
        };
        let mut api = until(std::time::Duration::from_secs(60), "etcd", || async {
            let mut client = connect("apiserver-etcd-client").await?;
            client.status().await?;
            Ok(client)
        })
        .await
        .unwrap();
        let start = std::time::Instant::now();
        set_up(&mut api).await.unwrap();
        println!("etcd's users are set up in {:?}", start.elapsed());
        set_up(&mut api).await.unwrap();
        api.put("/registry/secrets/x", "s", None).await.unwrap();
        let config = format!("{FLANNEL_PREFIX}/config");
        api.put(config.as_str(), "{}", None).await.unwrap();

        let mut node = connect("etcd-client").await.unwrap();
        let own = format!("{FLANNEL_PREFIX}/subnets/10.244.1.0-24");
        node.put(own.as_str(), "x", None).await.unwrap();
        let seen = node.get(config.as_str(), None).await.unwrap();
        assert_eq!(seen.count(), 1);
        let all = GetOptions::new().with_prefix();
        let refused = [
            node.get("/registry/", Some(all)).await.map(drop),
            node.put(config, "", None).await.map(drop),
            node.put("/registry/x", "", None).await.map(drop),
            node.user_list().await.map(drop),
            node.auth_disable().await.map(drop),
        ];
        for answer in refused {
            let error = answer.unwrap_err();
            assert!(error.to_string().contains("permission denied"), "{error}");
        }
    }
}
