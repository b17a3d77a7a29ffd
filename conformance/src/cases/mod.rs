//! The table of cases. A case's name is a sentence about behaviour; it gets a context,
//! and an error of it is the case's failure. A case whose cluster is missing is skipped.
//!
//! A file per subject: `network`, `pods`, `volumes`, `streams` (logs and exec), `connections` (attach and
//! port-forward), `parts` (each part alone), `hosted` (containers on a host), `shipped` (our images for users),
//! `inspection` (a node's pods as its bubble's shell sees them), `refusals` (bad input), `isolation` (other users),
//! `node` (what a node does for itself), `overlay` (what it goes through), `gpus` (what Slurm granted of them), `limits`
//! (cgroups), `top` (metrics-server), `scale` (many pods, and an absent API server), `faults` (killed processes),
//! `jobs` (the job's life), `image` (where the bubbles' image comes from), `site` (tarballs, `make develop`),
//! `documents` (the documentation's commands), `single` (a user without subordinate ids), `measuring` (the benchmarks, not their
//! figures).

mod connections;
mod documents;
mod faults;
mod gpus;
mod hosted;
mod image;
mod inspection;
mod isolation;
mod jobs;
mod limits;
mod measuring;
mod network;
mod node;
mod overlay;
mod parts;
mod pods;
mod refusals;
mod scale;
mod shipped;
mod single;
mod site;
mod streams;
mod top;
mod volumes;

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cluster::Cluster;
use crate::testbed::Testbed;

/// One behaviour and how it is shown.
#[derive(Debug)]
pub struct Case {
    pub subject: &'static str,
    pub name: &'static str,
    pub run: fn(&mut Context) -> Result<()>,
}

/// How a case ended.
#[derive(Debug)]
pub enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// What cases share: the testbed and one cluster of three nodes, made when first asked for.
#[derive(Debug)]
pub struct Context {
    pub testbed: Testbed,
    cluster: Option<Cluster>,
    /// The cluster of the cases in `node`.
    own_node: Option<Cluster>,
    broken: bool,
}

/// The shared cluster did not start for an earlier case, whose failure says why.
#[derive(Debug)]
struct NoCluster;

impl std::fmt::Display for NoCluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the shared cluster did not start")
    }
}

impl std::error::Error for NoCluster {}

/// The machine lacks what the case is about.
#[derive(Debug)]
struct Unavailable(&'static str);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.0)
    }
}

impl std::error::Error for Unavailable {}

/// sbatch's options for the shared cluster, and for those beside it: small enough that
/// two share the testbed's hosts.
pub const SIZE: &str = "--cpus-per-task=2 --mem=3G --time=60";

impl Case {
    /// Whether one of `words` stands in the subject or the name; no word selects all.
    pub fn matches(&self, words: &[String]) -> bool {
        words.is_empty()
            || words.iter().any(|word| {
                self.subject.contains(word.as_str()) || self.name.contains(word.as_str())
            })
    }
}

impl Context {
    pub fn new(testbed: Testbed) -> Self {
        Self {
            testbed,
            cluster: None,
            own_node: None,
            broken: false,
        }
    }

    /// The shared cluster. A start that failed is not tried again by every case.
    pub fn cluster(&mut self) -> Result<Cluster> {
        if self.broken {
            return Err(NoCluster.into());
        }
        if let Some(cluster) = &self.cluster {
            return Ok(cluster.clone());
        }
        match Cluster::start(&self.testbed, 3, SIZE) {
            Ok(cluster) => Ok(self.cluster.insert(cluster).clone()),
            Err(error) => {
                self.broken = true;
                Err(error)
            }
        }
    }

    /// The cluster of one node that the cases in `node` share.
    fn own_node(&mut self) -> Result<Cluster> {
        if let Some(cluster) = &self.own_node {
            return Ok(cluster.clone());
        }
        let cluster = node::start(&self.testbed)?;
        Ok(self.own_node.insert(cluster).clone())
    }

    fn end_own_node(&mut self) -> Result<()> {
        match self.own_node.take() {
            Some(cluster) => node::end(&self.testbed, &cluster),
            None => Ok(()),
        }
    }

    /// Ends the shared clusters, if there are any.
    pub fn finish(&mut self) {
        if let Err(error) = self.end_own_node() {
            eprintln!("ending the cluster of one node: {error:#}");
        }
        if let Some(cluster) = self.cluster.take()
            && let Err(error) = cluster.cancel()
        {
            eprintln!("ending the shared cluster: {error:#}");
        }
    }
}

/// Runs a case and times it.
pub fn run(case: &Case, context: &mut Context) -> (Outcome, Duration) {
    let start = Instant::now();
    let outcome = match (case.run)(context) {
        Ok(()) => Outcome::Passed,
        Err(error) if error.is::<NoCluster>() || error.is::<Unavailable>() => {
            Outcome::Skipped(error.to_string())
        }
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    (outcome, start.elapsed())
}

/// Runs `body` in a namespace of its own on the shared cluster; the namespace goes
/// whether or not the body succeeds.
fn in_namespace(
    context: &mut Context,
    name: &str,
    body: impl FnOnce(&Cluster, &str) -> Result<()>,
) -> Result<()> {
    let cluster = context.cluster()?;
    let namespace = cluster.namespace(name)?;
    let result = body(&cluster, &namespace);
    let removed = cluster.remove_namespace(&namespace);
    result?;
    removed
}

macro_rules! table {
    ($($module:ident: $($name:ident)*;)*) => {
        &[$($(Case {
            subject: stringify!($module),
            name: stringify!($name),
            run: $module::$name,
        },)*)*]
    };
}

/// Every case, in the order in which they run: those that end or burden the shared
/// cluster come last.
pub const TABLE: &[Case] = table! {
    jobs:
        three_nodes_are_ready_and_the_job_says_how_to_use_them;
    network:
        pods_reach_each_other_by_address
        pods_answer_to_ping
        a_pod_reaches_a_pod_of_its_own_node_through_a_cluster_ip_and_keeps_its_address
        a_service_is_reached_by_name_from_every_node
        pods_reach_the_outside
        pods_reach_the_api_server;
    pods:
        a_node_keeps_memory_for_its_own_daemons
        environment_volumes_and_tokens_arrive_in_a_pod
        init_containers_run_in_order_before_the_app
        a_job_completes
        the_default_seccomp_profile_and_one_of_the_users_confine_a_pod
        a_deployment_spreads_and_rolls
        a_failing_container_is_restarted_with_back_off
        a_rule_restarts_a_container_by_its_exit_code
        a_pod_that_another_says_is_not_ready_is_ready_again
        a_pod_that_another_says_has_failed_ends
        a_pod_ends_within_its_grace_period
        an_unready_pod_gets_no_traffic
        an_ephemeral_container_sees_its_targets_processes;
    volumes:
        another_user_than_root_reads_what_its_pod_is_given
        a_claim_gets_a_folder_of_the_home_which_goes_with_it;
    streams:
        logs_follow_tail_since_and_previous
        a_log_is_whole_over_a_websocket
        exec_passes_streams_and_exit_codes
        exec_has_a_terminal_that_can_be_resized;
    connections:
        attach_carries_input_and_output_of_the_containers_own_process
        attach_has_the_containers_terminal
        port_forward_carries_traffic_to_a_pods_own_loopback
        port_forward_says_which_port_nobody_listens_on;
    documents:
        the_docs_commands_in_a_bubble_work_as_they_stand;
    inspection:
        a_bubbles_shell_tells_of_pods_and_containers_as_crictl_would;
    refusals:
        an_image_that_does_not_exist_is_named_in_the_event
        an_image_that_the_policy_rejects_is_named_in_the_event
        a_volume_that_cannot_be_had_is_named_in_the_event
        an_overlarge_pod_is_left_pending_by_the_scheduler
        a_malformed_cni_conf_is_refused_with_its_fault
        a_full_image_store_is_reported_and_keeps_what_it_has
        a_missing_apptainer_is_named
        a_folder_without_the_programs_is_named
        a_cgroup_that_nobody_gave_is_named;
    parts:
        the_cnitool_example_of_the_docs_works
        the_ctr_example_of_the_docs_works
        the_shim_keeps_its_promises_under_containerd
        the_shim_pauses_on_a_tree_of_cgroup_v2_alone
        the_shim_gives_containers_the_driver_of_their_gpus
        the_shim_under_a_containerd_of_a_user_without_subuids_has_root_alone
        the_shim_refuses_hostile_specs_and_leaves_nothing
        the_shim_runs_pods_as_the_kubelet_drives_it
        the_same_kubelet_runs_pods_on_runc_and_the_bridge_plugin
        hpktainer_runs_an_image_on_the_pod_network
        hpktainer_takes_images_in_every_form
        the_doctor_finds_nothing_essential_missing;
    hosted:
        hpktainer_on_a_host_is_on_the_network_of_its_bubble
        a_killed_hpktainer_on_a_host_leaves_nothing_in_the_bubble
        hpktainer_on_a_bare_host_makes_a_bubble_of_its_own
        hpktainer_has_dockers_habits
        hpktainer_pulls_from_a_registry_on_the_hosts_loopback
        where_the_kernel_refuses_overlays_fuse_overlayfs_does
        hpktainer_logs_are_whole_through_rotations
        what_kills_leave_on_a_bare_host_goes_with_the_next_run
        a_bare_host_without_an_uplinks_program_is_told_which;
    shipped:
        hpktainer_base_reaches_other_bubbles_pods_and_the_outside;
    limits:
        a_node_without_cgroups_says_so_and_a_resize_is_counted
        what_pods_use_is_served_as_metrics_server_reads_it
        limits_are_enforced_in_a_cgroup_that_the_site_gives;
    top:
        kubectl_top_shows_what_nodes_and_pods_use;
    node:
        a_full_node_takes_a_pod_for_each_that_ends
        a_pod_that_writes_more_than_it_may_is_evicted
        a_node_short_of_memory_evicts_the_pod_that_took_it_and_says_so
        a_node_short_of_disk_evicts_the_pod_that_filled_it_and_takes_none_meanwhile
        a_static_pod_runs_on_when_its_mirror_is_deleted_and_ends_with_its_file
        an_image_that_nobody_uses_leaves_the_store_and_the_nodes_list
        before_the_jobs_end_pods_have_their_hooks_and_their_grace;
    isolation:
        another_user_reads_nothing_of_the_cluster
        another_user_sees_no_secret_in_the_process_list
        another_user_cannot_use_the_ports
        another_user_gets_nothing_from_the_relay
        another_user_cannot_pose_as_the_relay
        only_listed_files_are_readable_by_others
        a_bubbles_key_opens_only_the_networks_part_of_etcd
        every_certificate_ends_soon_after_the_job
        another_user_who_takes_every_guessable_name_stops_no_start;
    overlay:
        a_connection_lives_through_killed_overlay_daemons
        a_connection_lives_through_a_cut_host;
    scale:
        a_node_of_110_pods_loses_none_with_its_kubelet_and_replaces_twenty_at_once
        pods_go_on_while_the_api_server_is_away_and_their_status_catches_up;
    faults:
        twenty_pods_outlive_a_killed_kubelet
        every_other_process_of_a_bubble_comes_back
        two_clusters_share_their_hosts;
    gpus:
        each_pod_that_asks_has_a_gpu_of_its_own_of_those_that_slurm_granted
        gpus_that_slurm_did_not_grant_are_not_offered_unless_the_user_names_them;
    single:
        a_user_without_subuids_has_a_cluster_on_which_root_is_the_only_user;
    jobs:
        a_cancelled_job_leaves_nothing_behind
        a_single_node_is_a_cluster
        one_cpu_is_enough_to_start
        what_a_kill_9_of_all_leaves_goes_with_the_next_job;
    image:
        an_image_that_cannot_be_had_is_named_with_what_to_do
        of_a_developers_tars_the_newest_is_the_image_and_what_older_ones_left_goes
        a_release_without_an_image_fetches_the_one_it_pins_once;
    site:
        each_tarball_is_all_that_a_user_needs_without_a_registry
        the_images_of_the_air_gapped_tarball_are_loaded_as_its_list_says
        what_make_develop_copies_is_what_starts;
    documents:
        the_docs_commands_for_single_containers_work_as_they_stand
        the_docs_commands_for_a_cluster_work_as_they_stand;
    measuring:
        the_benchmarks_measure_every_contender;
};
