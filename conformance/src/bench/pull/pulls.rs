//! From the registry to a squashfs, with nothing there before.

use anyhow::{Context as _, Result, bail};

use super::{APPTAINER, HPK, Place};
use crate::bench::scenario::{Aim, Better, Bound, Measure, Metric, Pace, Scenario};
use crate::testbed::Testbed;

/// The contenders; the first is the reference: by hand, packed as hpk packs.
const CONTENDERS: &[&str] = &[BY_HAND, BY_HAND_GZIP, APPTAINER, HPK];
const BY_HAND: &str = "skopeo-mksquashfs";
/// As mksquashfs does unless it is told otherwise, and Apptainer.
const BY_HAND_GZIP: &str = "skopeo-mksquashfs-gzip";

const PULL: &[Metric] = &[metric("seconds", "s"), metric("size of the squashfs", "MB")];

const fn metric(name: &'static str, unit: &'static str) -> Metric {
    Metric {
        name,
        unit,
        better: Better::Lower,
    }
}

pub struct Pulls(Place);

impl Pulls {
    pub fn new(testbed: &Testbed) -> Self {
        Self(Place {
            testbed: testbed.clone(),
        })
    }
}

/// What a contender does, and where its squashfs is then.
fn script(contender: &str) -> Result<(String, &'static str)> {
    let by_hand = |options: &str| {
        format!(
            "skopeo copy -q docker://$IMAGE dir:$WORK/dir
             mkdir $WORK/root
             for layer in $(jq -r '.layers[].digest' $WORK/dir/manifest.json); do
                 tar -C $WORK/root -xzf $WORK/dir/${{layer#sha256:}}
             done
             mksquashfs $WORK/root $WORK/made.sqfs -quiet -no-progress -all-root {options} >&2"
        )
    };
    Ok(match contender {
        BY_HAND => (by_hand("-comp zstd -Xcompression-level 3"), "made.sqfs"),
        BY_HAND_GZIP => (by_hand(""), "made.sqfs"),
        APPTAINER => (
            "apptainer --quiet pull $WORK/made.sif docker://$IMAGE >&2".to_owned(),
            "made.sif",
        ),
        HPK => (
            "hpktainer pull --quiet $IMAGE >&2".to_owned(),
            "store/*.sqfs",
        ),
        other => bail!("there is no contender {other:?}"),
    })
}

impl Scenario for Pulls {
    fn name(&self) -> &'static str {
        "pull"
    }

    fn contenders(&self) -> &'static [&'static str] {
        CONTENDERS
    }

    fn measures(&self) -> Vec<Measure> {
        vec![Measure {
            word: "240-MB",
            section: "An image of 240 MB, from the registry to a squashfs",
            metrics: PULL,
        }]
    }

    fn aims(&self) -> Vec<Aim> {
        [BY_HAND, APPTAINER]
            .map(|against| Aim {
                measure: "240-MB",
                metric: PULL[0].name,
                contender: HPK,
                against: Some(against),
                bound: Bound::AtMost(1.0),
            })
            .to_vec()
    }

    fn set_up(&mut self, _: &'static str) -> Result<()> {
        self.0.make()
    }

    fn measure(&mut self, contender: &'static str, _: &str, _: Pace) -> Result<Vec<f64>> {
        let (script, made) = script(contender)?;
        self.0
            .clear("dir root apptainer store made.sqfs made.sif")?;
        let said = self
            .0
            .on(&format!(
                "begin=$EPOCHREALTIME
                 {script}
                 echo $begin $EPOCHREALTIME $(stat -c %s $WORK/{made})"
            ))
            .success()?;
        self.0
            .clear("dir root apptainer store made.sqfs made.sif")?;
        figures(&said).with_context(|| format!("{contender} said {said:?}"))
    }

    fn tear_down(&mut self) -> Result<()> {
        self.0.remove()
    }
}

/// "BEGIN END BYTES" as seconds and MB.
fn figures(said: &str) -> Result<Vec<f64>> {
    let words: Vec<f64> = said
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    match words[..] {
        [begin, end, bytes] => Ok(vec![end - begin, bytes / 1e6]),
        _ => bail!("{} words instead of 3", words.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_size_are_read() {
        assert_eq!(figures("10.5 12.0 2000000\n").unwrap(), [1.5, 2.0]);
        assert!(figures("1 2").is_err());
    }

    #[test]
    fn every_contender_has_a_way() {
        assert!(CONTENDERS.iter().all(|it| script(it).is_ok()));
    }
}
