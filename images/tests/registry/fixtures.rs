//! A registry of our own, and images made entry by entry.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

/// One entry of a layer.
pub struct Entry {
    path: String,
    kind: tar::EntryType,
    mode: u32,
    text: String,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    fn new(path: &str, kind: tar::EntryType, mode: u32, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            kind,
            mode,
            text: text.to_owned(),
            xattrs: Vec::new(),
        }
    }

    pub fn dir(path: &str, mode: u32) -> Self {
        Self::new(path, tar::EntryType::Directory, mode, "")
    }

    pub fn file(path: &str, text: &str) -> Self {
        Self::new(path, tar::EntryType::Regular, 0o644, text)
    }

    pub fn link(path: &str, to: &str) -> Self {
        Self::new(path, tar::EntryType::Link, 0o644, to)
    }

    pub fn symlink(path: &str, to: &str) -> Self {
        Self::new(path, tar::EntryType::Symlink, 0o777, to)
    }

    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs
            .push((format!("SCHILY.xattr.{name}"), value.to_vec()));
        self
    }
}

/// Layers, the lowest first, each with another compression, and the config's `config`.
pub struct Image {
    layers: Vec<(Vec<u8>, Vec<u8>, &'static str)>,
    config: String,
}

impl Image {
    pub fn new(layers: impl IntoIterator<Item = Vec<Entry>>, config: &str) -> Self {
        let pack = |(index, entries): (usize, Vec<Entry>)| {
            let tar = tar_of(&entries);
            match index % 2 {
                0 => {
                    let mut gzip =
                        flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gzip.write_all(&tar).unwrap();
                    (
                        tar,
                        gzip.finish().unwrap(),
                        "application/vnd.oci.image.layer.v1.tar+gzip",
                    )
                }
                _ => {
                    let zstd = zstd::encode_all(tar.as_slice(), 1).unwrap();
                    (tar, zstd, "application/vnd.oci.image.layer.v1.tar+zstd")
                }
            }
        };
        Self {
            layers: layers.into_iter().enumerate().map(pack).collect(),
            config: config.to_owned(),
        }
    }

    /// Writes the image's blobs into the layout; gives its manifest's descriptor without the closing brace.
    pub fn write(&self, layout: &Path, architecture: &str) -> String {
        let diff_ids: Vec<String> = self
            .layers
            .iter()
            .map(|(tar, _, _)| format!("\"{}\"", digest(tar)))
            .collect();
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            self.config,
            diff_ids.join(",")
        );
        let layers: Vec<String> = self
            .layers
            .iter()
            .map(|(_, blob, kind)| write_blob(layout, blob, kind))
            .collect();
        let config = write_blob(
            layout,
            config.as_bytes(),
            "application/vnd.oci.image.config.v1+json",
        );
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{}]}}"#,
            layers.join(",")
        );
        write_blob(layout, manifest.as_bytes(), MANIFEST)
    }
}

/// This machine's, as images call it.
pub const ARCHITECTURE: &str = match cfg!(target_arch = "aarch64") {
    true => "arm64",
    false => "amd64",
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let is_file = entry.kind == tar::EntryType::Regular;
        let data = if is_file { entry.text.as_bytes() } else { b"" };
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_size(data.len() as u64);
        header.set_path(&entry.path).unwrap();
        if !is_file {
            header.set_link_name_literal(&entry.text).unwrap();
        }
        header.set_cksum();
        if !entry.xattrs.is_empty() {
            let records = entry.xattrs.iter().map(|(k, v)| (k.as_str(), v.as_slice()));
            tar.append_pax_extensions(records).unwrap();
        }
        tar.append(&header, data).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

pub fn write_blob(layout: &Path, bytes: &[u8], kind: &str) -> String {
    let digest = digest(bytes);
    let dir = layout.join("blobs/sha256");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
    format!(
        r#"{{"mediaType":"{kind}","digest":"{digest}","size":{}}}"#,
        bytes.len()
    )
}

/// A certificate authority and a certificate for 127.0.0.1.
pub struct Tls {
    dir: tempfile::TempDir,
}

impl Tls {
    pub fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ca_key, key) = (
            rcgen::KeyPair::generate().unwrap(),
            rcgen::KeyPair::generate().unwrap(),
        );
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let server = server.signed_by(&key, &issuer).unwrap();
        fs::write(dir.path().join("ca.pem"), ca_pem).unwrap();
        fs::write(dir.path().join("cert.pem"), server.pem()).unwrap();
        fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        Self { dir }
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

/// Somebody's key pair.
pub struct Signer {
    key: rcgen::KeyPair,
    dir: tempfile::TempDir,
}

impl Signer {
    pub fn make() -> Self {
        let (key, dir) = (
            rcgen::KeyPair::generate().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        fs::write(dir.path().join("key.pub"), key.public_key_pem()).unwrap();
        Self { key, dir }
    }

    /// The public key.
    pub fn key_file(&self) -> PathBuf {
        self.dir.path().join("key.pub")
    }

    fn sign(&self, document: &[u8]) -> String {
        use base64::Engine as _;
        use rcgen::SigningKey as _;
        let signature = self.key.sign(document).unwrap();
        base64::engine::general_purpose::STANDARD.encode(signature)
    }
}

/// docker-registry on a free port of loopback, until dropped.
pub struct Registry {
    dir: tempfile::TempDir,
    port: u16,
    process: Child,
    private: bool,
}

impl Registry {
    /// With TLS, or private for user `u` with password `p`.
    pub fn start(tls: Option<&Tls>, private: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let root = dir.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n"
        );
        if let Some(tls) = tls {
            let at = tls.dir.path().display();
            config.push_str(&format!(
                "  tls: {{certificate: {at}/cert.pem, key: {at}/key.pem}}\n"
            ));
        }
        if private {
            // bcrypt of "p".
            fs::write(
                dir.path().join("htpasswd"),
                "u:$2b$05$H/s8RXPItbxezGsaAJs.7.CP0EyFQmrElN8YiFQIFIUt/2WTYcmj2\n",
            )
            .unwrap();
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n"
            ));
        }
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(dir.path().join("config.yml"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let process = command.spawn().expect("docker-registry");
        let registry = Self {
            dir,
            port,
            process,
            private,
        };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the registry doesn't answer"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.host())
    }

    pub fn push(&self, image: &Image, name: &str) {
        self.push_for(ARCHITECTURE, image, name);
    }

    /// Its config says that it is for `architecture`.
    pub fn push_for(&self, architecture: &str, image: &Image, name: &str) {
        self.push_layout(name, |layout| image.write(layout, architecture));
    }

    pub fn push_index(&self, images: &[(&str, &Image)], name: &str) {
        self.push_layout(name, |layout| {
            let entries: Vec<String> = images
                .iter()
                .map(|(architecture, image)| {
                    let descriptor = image.write(layout, architecture);
                    let open = descriptor.trim_end_matches('}');
                    format!(
                        r#"{open},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#
                    )
                })
                .collect();
            let index = format!(
                r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#,
                entries.join(",")
            );
            write_blob(layout, index.as_bytes(), INDEX)
        });
    }

    fn push_layout(&self, name: &str, write: impl FnOnce(&Path) -> String) {
        let layout = tempfile::tempdir().unwrap();
        let descriptor = write(layout.path());
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
        fs::write(layout.path().join("index.json"), index).unwrap();
        fs::write(
            layout.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        let mut command = Command::new("skopeo");
        command.args([
            "copy",
            "--quiet",
            "--all",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ]);
        if self.private {
            command.args(["--dest-creds", "u:p"]);
        }
        command.arg(format!("oci:{}", layout.path().display()));
        command.arg(format!("docker://{}", self.name(name)));
        assert!(command.status().expect("skopeo").success());
    }

    /// Saves an image as a tar, `docker-archive` or `oci-archive`, under `name`.
    pub fn save(&self, image: &str, form: &str, tar: &Path, name: &str) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--src-tls-verify=false"]);
        command.arg(format!("docker://{}", self.name(image)));
        command.arg(format!("{form}:{}:{name}", tar.display()));
        assert!(command.status().expect("skopeo").success());
    }

    fn digest_of(&self, image: &str) -> String {
        let mut command = Command::new("skopeo");
        command.args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"]);
        command.arg(format!("docker://{}", self.name(image)));
        let output = command.output().expect("skopeo");
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What cosign calls the place of an image's signatures.
    fn signature_tag(&self, image: &str) -> String {
        let digest = self.digest_of(image).replace(':', "-");
        let repository = image.split(':').next().unwrap();
        format!("{repository}:{digest}.sig")
    }

    /// Attaches a signature that says the image is called `as_name`.
    pub fn sign(&self, image: &str, signer: &Signer, as_name: &str) {
        let digest = self.digest_of(image);
        let document = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{as_name}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        let signature = signer.sign(document.as_bytes());
        self.push_layout(&self.signature_tag(image), |layout| {
            let config = format!(
                r#"{{"architecture":"","os":"","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
                self::digest(document.as_bytes())
            );
            let config = write_blob(
                layout,
                config.as_bytes(),
                "application/vnd.oci.image.config.v1+json",
            );
            let layer = write_blob(
                layout,
                document.as_bytes(),
                "application/vnd.dev.cosign.simplesigning.v1+json",
            );
            let layer = layer.trim_end_matches('}');
            let manifest = format!(
                r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{layer},"annotations":{{"dev.cosignproject.cosign/signature":"{signature}"}}}}]}}"#
            );
            write_blob(layout, manifest.as_bytes(), MANIFEST)
        });
    }

    pub fn move_signature(&self, from: &str, to: &str) {
        let name = |image: &str| format!("docker://{}", self.name(&self.signature_tag(image)));
        let mut command = Command::new("skopeo");
        command.args([
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
        ]);
        command.args([name(from), name(to)]);
        assert!(command.status().expect("skopeo").success());
    }

    /// Changes a byte in the middle of the largest blob.
    pub fn tamper_with_largest_blob(&self) {
        let data = self.dir.path().join("data");
        let blobs = files_below(&data)
            .into_iter()
            .filter(|f| f.ends_with("/data"))
            .map(|f| data.join(f));
        let largest = blobs
            .max_by_key(|f| fs::metadata(f).unwrap().len())
            .unwrap();
        let mut bytes = fs::read(&largest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(largest, bytes).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A small file system, until dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn mount(dir: &Path, kib: u32) -> Self {
        fs::create_dir_all(dir).unwrap();
        let options = format!("size={kib}k,mode=700");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir)
            .status();
        assert!(status.unwrap().success());
        Self(dir.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Paths of all that isn't a folder, relative to `dir`.
pub fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                open.push(path);
            } else {
                found.push(
                    path.strip_prefix(dir)
                        .unwrap()
                        .to_string_lossy()
                        .into_owned(),
                );
            }
        }
    }
    found.sort();
    found
}

/// An extended attribute's value.
pub fn xattr(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 256];
    let n = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
    value.truncate(n);
    value
}
