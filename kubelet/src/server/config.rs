//! What the server is told.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Settings of the HTTPS server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where to listen: node IP, port 10250.
    pub listen: SocketAddr,
    /// The node's name: authorisation is asked for this node.
    pub node_name: String,
    /// PEM, the server's chain.
    pub cert_file: PathBuf,
    /// PEM, its key.
    pub key_file: PathBuf,
    /// PEM, who signs the certificates of callers (the API server's).
    pub client_ca_file: PathBuf,
    /// For exec's FIFOs, made 0700: the kubelet's run folder.
    pub run_dir: PathBuf,
}
