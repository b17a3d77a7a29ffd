//! Which GPUs the job has, as Slurm's variables say, or as the user does in their place.
//!
//! Source: srun(1), "OUTPUT ENVIRONMENT VARIABLES"; src/plugins/gres/common/gres_common.c of Slurm 26.05.
//! - SLURM_STEP_GPUS: the indices, on this host, of the step's GPUs in the order of gres.conf, whether or not a device
//!   cgroup hides the others. (GPUs whose files neither gres.conf nor AutoDetect names Slurm leaves out.)
//! - SLURM_JOB_GPUS: the same of the job, for batch scripts; a step's tasks have inherited it from the job's first
//!   host, so on others it is untrue.
//! - CUDA_VISIBLE_DEVICES: for programs. Indices among what the device cgroup leaves visible, where there is one, so
//!   always from 0; UUIDs with `Flags=env_uuid` and for MIG's parts.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::allocation::Variables;

/// The user's word, for sites that have GPUs but don't manage them as GRES.
pub const SETTING: &str = "HPK_GPUS";
/// From this number on Slurm's step numbers stand for batch scripts and the like (SLURM_MAX_NORMAL_STEP_ID); 26.05 writes
/// a batch script's as -5.
const NO_STEP: u32 = 0xffff_fff0;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    Nothing,
    /// All that may be opened, by the user's word.
    All,
    /// These, by the user's word.
    Named(Vec<Name>),
    Slurms {
        /// In the order of gres.conf.
        indices: Vec<usize>,
        /// Their UUIDs, where Slurm tells them.
        uuids: Option<Vec<String>>,
    },
    /// Something that can't be given to pods.
    Unusable(String),
}

/// A GPU as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// The N of /dev/nvidiaN; of AMD's the N-th, from 0.
    Number(usize),
    Node(PathBuf),
}

impl Grant {
    /// # Errors
    /// A variable that isn't of its form.
    pub fn parse(variables: &Variables) -> Result<Self> {
        let get = |name: &str| variables.get(name).map(|text| text.trim());
        let get = |name: &str| get(name).filter(|text| !text.is_empty());
        if let Some(text) = get(SETTING) {
            return named(text);
        }
        let step = get("SLURM_STEP_ID").and_then(|id| id.parse::<u32>().ok());
        let in_step = step.is_some_and(|id| id < NO_STEP);
        let indices = match get("SLURM_STEP_GPUS") {
            None if !in_step => get("SLURM_JOB_GPUS"),
            of_step => of_step,
        };
        let part = |variable: &str, what: &str| {
            let value = get(variable).unwrap_or_default();
            Self::Unusable(format!(
                "Slurm granted {what} ({variable}={value}), which others use, too: ask for whole GPUs (--gres=gpu:N)"
            ))
        };
        // Older Slurms say so where a step has none.
        let Some(indices) = indices.filter(|text| *text != "NoDevFiles") else {
            return Ok(match get("SLURM_SHARDS_ON_NODE") {
                Some(_) => part("SLURM_SHARDS_ON_NODE", "shards of GPUs"),
                None => Self::Nothing,
            });
        };
        let Some(indices) = numbers(indices) else {
            return Ok(Self::Unusable(format!(
                "Slurm's list of GPUs, {indices:?}, is not of numbers: name them in {SETTING}"
            )));
        };
        for (variable, what) in [
            ("SLURM_SHARDS_ON_NODE", "shards of GPUs"),
            ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "a part of a GPU (MPS)"),
        ] {
            if get(variable).is_some() {
                return Ok(part(variable, what));
            }
        }
        let visible: Vec<&str> = get("CUDA_VISIBLE_DEVICES")
            .into_iter()
            .flat_map(|text| text.split(','))
            .collect();
        if let Some(part) = visible.iter().find(|word| word.starts_with("MIG-")) {
            return Ok(Self::Unusable(format!(
                "Slurm granted parts of a GPU (CUDA_VISIBLE_DEVICES names {part}): MIG is not supported"
            )));
        }
        let is_told =
            visible.len() == indices.len() && visible.iter().all(|word| word.starts_with("GPU-"));
        Ok(Self::Slurms {
            indices,
            uuids: is_told.then(|| visible.iter().map(|word| (*word).to_owned()).collect()),
        })
    }
}

fn named(text: &str) -> Result<Grant> {
    match text {
        "none" => return Ok(Grant::Nothing),
        "all" => return Ok(Grant::All),
        _ => {}
    }
    let mut names = Vec::new();
    for word in text.split(',').map(str::trim) {
        let name = match word.parse() {
            Ok(number) => Name::Number(number),
            Err(_) if word.starts_with("/dev/") => Name::Node(word.into()),
            Err(_) => bail!(
                "{SETTING}={text}: {word:?} is neither a GPU's number nor its device node; all and none stand alone"
            ),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(Grant::Named(names))
}

fn numbers(text: &str) -> Option<Vec<usize>> {
    text.split(',')
        .map(|word| word.trim().parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Grant {
        Grant::parse(&variables(pairs)).unwrap()
    }

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    fn slurms(indices: &[usize]) -> Grant {
        Grant::Slurms {
            indices: indices.to_vec(),
            uuids: None,
        }
    }

    #[test]
    fn a_steps_own_gpus_count_and_not_what_it_inherited_from_the_jobs_first_host() {
        let inherited = ("SLURM_JOB_GPUS", "0,1");
        let step = ("SLURM_STEP_ID", "0");
        let own = ("SLURM_STEP_GPUS", "2,3");
        assert_eq!(parse(&[inherited, step, own]), slurms(&[2, 3]));
        assert_eq!(parse(&[inherited, step]), Grant::Nothing);
        // A batch script is no step.
        assert_eq!(parse(&[inherited]), slurms(&[0, 1]));
        for id in ["4294967291", "-5"] {
            let batch = ("SLURM_STEP_ID", id);
            assert_eq!(parse(&[inherited, batch]), slurms(&[0, 1]));
        }
    }

    #[test]
    fn what_programs_are_told_counts_only_as_uuids() {
        let step = ("SLURM_STEP_GPUS", "2,3");
        let local = ("CUDA_VISIBLE_DEVICES", "0,1");
        assert_eq!(parse(&[step, local]), slurms(&[2, 3]));
        let Grant::Slurms { uuids, .. } = parse(&[step, ("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")])
        else {
            panic!("not Slurm's");
        };
        assert_eq!(uuids.unwrap(), ["GPU-a", "GPU-b"]);
    }

    #[test]
    fn parts_of_gpus_are_named_as_what_they_are() {
        let why = |pairs| match parse(pairs) {
            Grant::Unusable(why) => why,
            other => panic!("{other:?}"),
        };
        let mig = [
            ("SLURM_STEP_GPUS", "0"),
            ("CUDA_VISIBLE_DEVICES", "MIG-1f2e"),
        ];
        assert!(why(&mig).contains("MIG-1f2e"));
        let shards = [("SLURM_STEP_GPUS", "0"), ("SLURM_SHARDS_ON_NODE", "3")];
        assert!(why(&shards).contains("SLURM_SHARDS_ON_NODE=3"));
    }

    #[test]
    fn the_users_word_goes_before_slurms() {
        let slurm = ("SLURM_STEP_GPUS", "0,1");
        assert_eq!(parse(&[slurm, (SETTING, "none")]), Grant::Nothing);
        assert_eq!(parse(&[(SETTING, "all")]), Grant::All);
        let names = vec![Name::Number(1), Name::Node("/dev/nvidia3".into())];
        assert_eq!(
            parse(&[slurm, (SETTING, "1, /dev/nvidia3,1")]),
            Grant::Named(names)
        );
        let wrong = Grant::parse(&variables(&[(SETTING, "0,all")])).unwrap_err();
        assert!(wrong.to_string().contains("HPK_GPUS=0,all: \"all\""));
    }
}
