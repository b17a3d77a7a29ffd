//! Layers are real tars in memory, listed by [`crate::layer::list`].

use super::*;
use crate::layer::list;
use crate::limits::{Budget, Limits};

/// More than any test's layers take.
pub(crate) fn ample() -> Budget {
    Budget::new(Limits::default())
}

/// A tar written entry by entry.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Layer(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, path: &str, kind: tar::EntryType, mode: u32, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(9);
        header.set_size(data.len() as u64);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_link_name_literal(link).unwrap();
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    /// An entry with PAX records before it.
    pub(crate) fn with_pax(mut self, records: &[(&str, &str)], kind: tar::EntryType) -> Self {
        let records = records.iter().map(|(k, v)| (*k, v.as_bytes()));
        self.0.append_pax_extensions(records).unwrap();
        self.add("x", kind, 0o644, "", b"")
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.add(path, tar::EntryType::Directory, mode, "", b"")
    }

    pub(crate) fn file(self, path: &str, data: &str) -> Self {
        self.data(path, data.as_bytes())
    }

    pub(crate) fn data(self, path: &str, data: &[u8]) -> Self {
        self.add(path, tar::EntryType::Regular, 0o644, "", data)
    }

    pub(crate) fn symlink(self, path: &str, to: &str) -> Self {
        self.add(path, tar::EntryType::Symlink, 0o777, to, b"")
    }

    pub(crate) fn hardlink(self, path: &str, to: &str) -> Self {
        self.add(path, tar::EntryType::Link, 0o644, to, b"")
    }

    pub(crate) fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn merged(layers: impl IntoIterator<Item = Layer>) -> Result<Tree, Error> {
    let listings: Vec<Listing> = layers
        .into_iter()
        .map(|l| list(l.tar().as_slice(), &ample()).unwrap())
        .collect();
    merge(&listings)
}

/// `path/` for folders, `path@target`, `path=layer.index` for files' names.
fn shown(layers: impl IntoIterator<Item = Layer>) -> Vec<String> {
    let tree = merged(layers).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut lines: Vec<String> = tree
        .nodes
        .iter()
        .map(|n| match &n.kind {
            Kind::Dir => format!("{}/", text(&n.path)),
            Kind::Symlink(to) => format!("{}@{}", text(&n.path), text(to)),
            other => format!("{} {other:?}", text(&n.path)),
        })
        .collect();
    for (layer, files) in tree.files.iter().enumerate() {
        for (index, file) in files {
            lines.extend(
                file.names
                    .iter()
                    .map(|n| format!("{}={layer}.{index}", text(n))),
            );
        }
    }
    lines.sort();
    lines
}

#[test]
fn the_upper_file_wins_and_the_lower_ones_data_is_not_read() {
    let tree = merged([
        Layer::new().file("a", "low").file("b", "x"),
        Layer::new().file("./a", "up"),
    ])
    .unwrap();
    assert_eq!(tree.files[0].keys().collect::<Vec<_>>(), [&1]);
    assert_eq!(tree.files[1][&0].names, [b"a".to_vec()]);
    assert_eq!(tree.files[1][&0].size, 2);
}

#[test]
fn within_one_layer_the_last_entry_wins() {
    assert_eq!(
        shown([Layer::new().file("a", "1").file("a", "2")]),
        ["a=0.1"]
    );
}

#[test]
fn a_whiteout_removes_only_what_is_below() {
    let low = || {
        Layer::new()
            .dir("d", 0o755)
            .file("d/x", "")
            .dir("d/s", 0o755)
            .file("d/s/y", "")
            .file("k", "")
    };
    assert_eq!(shown([low(), Layer::new().file(".wh.d", "")]), ["k=0.4"]);
    assert_eq!(
        shown([low(), Layer::new().file("d/.wh.x", "")]),
        ["d/", "d/s/", "d/s/y=0.3", "k=0.4"]
    );
    // The same name new in the layer that whites it out.
    assert_eq!(
        shown([
            low(),
            Layer::new()
                .file(".wh.d", "")
                .dir("d", 0o700)
                .file("d/n", "")
        ]),
        ["d/", "d/n=1.2", "k=0.4"]
    );
    for nameless in [".wh.", "d/.wh."] {
        let all = ["d/", "d/s/", "d/s/y=0.3", "d/x=0.1", "k=0.4"];
        assert_eq!(shown([low(), Layer::new().file(nameless, "")]), all);
    }
    // A whiteout of nothing is no error.
    assert_eq!(
        shown([Layer::new().file(".wh.none", "").file("x/.wh.y", "")]),
        Vec::<String>::new()
    );
}

#[test]
fn an_opaque_folder_keeps_only_its_own_layers_content() {
    let low = Layer::new()
        .dir("d", 0o755)
        .file("d/x", "")
        .dir("d/s", 0o755)
        .file("d/s/y", "");
    let up = Layer::new()
        .dir("d", 0o755)
        .file("d/new", "")
        .file("d/s/z", "")
        .file("d/.wh..wh..opq", "");
    assert_eq!(shown([low, up]), ["d/", "d/new=1.1", "d/s/", "d/s/z=1.2"]);
}

#[test]
fn a_folder_over_a_folder_gives_it_new_metadata_and_keeps_the_content() {
    let layers = [
        Layer::new().dir("d", 0o755).file("d/x", ""),
        Layer::new().dir("d/", 0o700),
    ];
    let tree = merged(layers).unwrap();
    assert_eq!(
        (tree.nodes[0].path.as_slice(), tree.nodes[0].meta.mode),
        (&b"d"[..], 0o700)
    );
    assert_eq!(tree.files[0].len(), 1);
}

#[test]
fn folders_and_files_replace_each_other() {
    let dir = || Layer::new().dir("a", 0o755).file("a/x", "");
    assert_eq!(shown([dir(), Layer::new().file("a", "")]), ["a=1.0"]);
    assert_eq!(
        shown([Layer::new().file("a", ""), dir()]),
        ["a/", "a/x=1.1"]
    );
    assert_eq!(
        shown([Layer::new().file("a", ""), Layer::new().file("a/x", "")]),
        ["a/", "a/x=1.0"]
    );
    assert_eq!(
        shown([Layer::new().symlink("a", "b"), dir()]),
        ["a/", "a/x=1.1"]
    );
}

#[test]
fn a_hard_link_outlives_its_target() {
    let low = || {
        Layer::new()
            .file("t", "data")
            .hardlink("l", "t")
            .hardlink("m", "./t")
    };
    assert_eq!(shown([low()]), ["l=0.0", "m=0.0", "t=0.0"]);
    assert_eq!(
        shown([low(), Layer::new().file(".wh.t", "")]),
        ["l=0.0", "m=0.0"]
    );
    assert_eq!(
        shown([low(), Layer::new().file("t", "new")]),
        ["l=0.0", "m=0.0", "t=1.0"]
    );
}

#[test]
fn a_hard_link_may_point_into_a_lower_layer() {
    let low = || Layer::new().dir("d", 0o755).file("d/t", "data");
    assert_eq!(
        shown([low(), Layer::new().hardlink("l", "/d/t")]),
        ["d/", "d/t=0.1", "l=0.1"]
    );
    // A rename across layers, in either order.
    assert_eq!(
        shown([low(), Layer::new().file("d/.wh.t", "").hardlink("l", "d/t")]),
        ["d/", "l=0.1"]
    );
    assert_eq!(
        shown([low(), Layer::new().hardlink("l", "d/t").file("d/.wh.t", "")]),
        ["d/", "l=0.1"]
    );
}

#[test]
fn a_hard_link_to_nothing_is_an_error_with_both_names() {
    let error = merged([Layer::new().hardlink("l", "gone")])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "layer 0: hard link \"l\" to \"gone\", which doesn't exist"
    );
}

#[test]
fn entries_below_a_link_land_where_it_points_inside_the_image() {
    let low = || {
        Layer::new()
            .dir("usr/lib", 0o755)
            .symlink("lib", "usr/lib")
            .symlink("out", "/../../usr")
    };
    let base = ["lib@usr/lib", "out@/../../usr", "usr/", "usr/lib/"];
    let up = Layer::new().file("lib/x", "").file("out/y", "");
    assert_eq!(
        shown([low(), up]),
        [&base[..], &["usr/lib/x=1.0", "usr/y=1.1"]].concat()
    );
    // A link that leads round in circles ends.
    let circle = Layer::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", "");
    assert_eq!(shown([circle]).len(), 3);
}

#[test]
fn paths_never_leave_the_root() {
    assert_eq!(
        shown([Layer::new().file("../../etc/x", "").file("/abs", "")]),
        ["abs=0.1", "etc/", "etc/x=0.0"]
    );
}

#[test]
fn owner_mode_and_time_are_kept() {
    let tree = merged([Layer::new().dir("./", 0o1777).file("a", "")]).unwrap();
    assert_eq!(tree.root.mode, 0o1777);
    let meta = &tree.files[0][&1].meta;
    assert_eq!(
        (meta.mode, meta.uid, meta.gid, meta.mtime),
        (0o644, 7, 8, 9)
    );
}

#[test]
fn folders_that_are_left_out_are_made_however_deep_and_count() {
    let deep = |top: &str| {
        let path = format!("{top}/{}x", "d/".repeat(2000));
        Layer::new().with_pax(&[("path", &path)], tar::EntryType::Regular)
    };
    let one = [list(deep("a").tar().as_slice(), &ample()).unwrap()];
    assert_eq!(merge(&one).unwrap().nodes.len(), 2001);
    let two = [deep("a"), deep("b")].map(|l| list(l.tar().as_slice(), &ample()).unwrap());
    let limit = 6 << 20;
    assert!(merge_within(&two[..1], limit).is_ok());
    assert_eq!(
        merge_within(&two, limit),
        Err(Error::Paths { layer: 1, limit })
    );
}

#[test]
fn paths_that_links_make_long_count_and_have_an_end() {
    let long = "d/".repeat(2000) + "e";
    let link = |layer: Layer, path: &str, to: &str| {
        layer.with_pax(&[("path", path), ("linkpath", to)], tar::EntryType::Symlink)
    };
    let linked = || link(Layer::new(), "l", &long);
    let listing = |layer: Layer| [list(layer.tar().as_slice(), &ample()).unwrap()];
    let limit = 6 << 20;
    assert!(merge_within(&listing(linked().file("l/x", "")), limit).is_ok());
    let many = (0..1000).fold(linked(), |layer, n| layer.file(&format!("l/{n}"), ""));
    assert_eq!(
        merge_within(&listing(many), limit),
        Err(Error::Paths { layer: 0, limit })
    );
    let further = link(linked(), "m", &format!("l/{}", "f/".repeat(60)));
    assert_eq!(
        merge(&listing(further.file("m/x", ""))),
        Err(Error::LongPath {
            layer: 0,
            path: "m/x".to_owned()
        })
    );
}

#[test]
fn a_whiteout_that_is_said_twice_removes_no_more() {
    let low = || {
        Layer::new()
            .file("a", "")
            .file("d/old", "")
            .file("d/kept", "")
    };
    let up = |times: usize| {
        (0..times).fold(Layer::new().file("d/new", ""), |layer, _| {
            layer.file(".wh.a", "").file("d/.wh..wh..opq", "")
        })
    };
    assert_eq!(shown([low(), up(3)]).len(), 2);
    assert_eq!(
        shown([low(), up(1).file("a", "").file(".wh.a", "")])
            .iter()
            .filter(|line| line.starts_with("a="))
            .count(),
        1
    );
}
