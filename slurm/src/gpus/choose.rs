//! From a grant and a host's GPUs to the devices for pods. Pure.
//!
//! Slurm tells indices in the order of its gres.conf, and never the nodes. So:
//! - as many GPUs may be opened as were granted: it is these (`ConstrainDevices`, or all of the host);
//! - more may be opened: by the UUIDs, where Slurm tells them;
//! - else nobody can tell which they are, and none is offered: another's could be among them.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::grant::{Grant, Name, SETTING};
use super::observe::{Gpu, Observed};
use super::{Device, Make, Offer};

/// # Errors
/// HPK_GPUS names what isn't here.
pub fn choose(grant: &Grant, seen: &Observed) -> Result<Offer> {
    let chosen = match grant {
        Grant::Nothing => Ok(Vec::new()),
        Grant::All => Ok(seen.gpus.iter().filter(|gpu| gpu.may_open).collect()),
        Grant::Named(names) => Ok(named(names, &seen.gpus)?),
        Grant::Slurms { indices, uuids } => granted(indices, uuids.as_deref(), seen),
        Grant::Unusable(why) => Err(why.clone()),
    };
    Ok(match chosen {
        Ok(gpus) => Offer {
            devices: gpus.into_iter().map(device).collect(),
            withheld: None,
        },
        Err(why) => Offer {
            devices: Vec::new(),
            withheld: Some(why),
        },
    })
}

fn device(gpu: &Gpu) -> Device {
    let mut nodes = vec![gpu.node.clone()];
    nodes.extend(gpu.make.control_node().map(PathBuf::from));
    Device {
        resource: gpu.make.resource().to_owned(),
        nodes,
    }
}

fn named<'a>(names: &[Name], gpus: &'a [Gpu]) -> Result<Vec<&'a Gpu>> {
    let mut chosen: Vec<&Gpu> = Vec::new();
    for name in names {
        let fits = |gpu: &&Gpu| match (name, gpu.make) {
            (Name::Node(node), _) => gpu.node == *node,
            (Name::Number(number), Make::Nvidia) => gpu.number as usize == *number,
            (Name::Number(number), Make::Amd) => gpu.rank == *number,
        };
        let found: Vec<&Gpu> = gpus.iter().filter(fits).collect();
        let what = match name {
            Name::Node(node) => node.display().to_string(),
            Name::Number(number) => number.to_string(),
        };
        match found.as_slice() {
            [gpu] if !gpu.may_open => bail!(
                "{SETTING}: {what}: {} may not be opened by this job",
                gpu.node.display()
            ),
            [gpu] if chosen.contains(gpu) => {}
            [gpu] => chosen.push(gpu),
            [] => bail!("{SETTING}: {what} is no GPU of this host"),
            _ => bail!("{SETTING}: {what} is a GPU of NVIDIA's and one of AMD's: name the nodes"),
        }
    }
    Ok(chosen)
}

fn granted<'a>(
    indices: &[usize],
    uuids: Option<&[String]>,
    seen: &'a Observed,
) -> Result<Vec<&'a Gpu>, String> {
    let count = indices.len();
    let advice = format!("name them in {SETTING}");
    let gpus = &seen.gpus;
    let Some(first) = gpus.first() else {
        return Err(format!(
            "Slurm granted {count}, and this host has neither /dev/nvidiaN nor AMD's /dev/dri/renderDN"
        ));
    };
    if gpus.iter().any(|gpu| gpu.make != first.make) {
        return Err(format!(
            "this host has GPUs of NVIDIA's and of AMD's, and Slurm doesn't tell which of them it granted: {advice}"
        ));
    }
    let openable: Vec<&Gpu> = gpus.iter().filter(|gpu| gpu.may_open).collect();
    if openable.len() == count {
        return Ok(openable);
    }
    if openable.len() < count {
        return Err(format!(
            "Slurm granted {count}, and this job may open {} of this host's {}",
            openable.len(),
            gpus.len()
        ));
    }
    if let Some(uuids) = uuids {
        return uuids.iter().map(|uuid| by_uuid(uuid, &openable)).collect();
    }
    Err(format!(
        "Slurm granted {count}, the job may open {}, and Slurm doesn't tell which are meant (cgroup.conf without ConstrainDevices): {advice}",
        openable.len()
    ))
}

fn by_uuid<'a>(uuid: &str, openable: &[&'a Gpu]) -> Result<&'a Gpu, String> {
    let is_it = |gpu: &&&Gpu| gpu.told.as_ref().is_some_and(|told| told.uuid == uuid);
    let found = openable.iter().find(is_it).copied();
    found.ok_or_else(|| {
        format!("Slurm granted {uuid}, which /proc/driver/nvidia/gpus doesn't know: name it in {SETTING}")
    })
}

#[cfg(test)]
mod tests {
    use super::super::observe::Told;
    use super::*;

    fn gpu(make: Make, rank: usize, may_open: bool) -> Gpu {
        let number = rank as u32 + if make == Make::Amd { 128 } else { 0 };
        let node = match make {
            Make::Nvidia => format!("/dev/nvidia{number}"),
            Make::Amd => format!("/dev/dri/renderD{number}"),
        };
        Gpu {
            make,
            rank,
            number,
            node: node.into(),
            may_open,
            told: None,
        }
    }

    fn seen(gpus: Vec<Gpu>) -> Observed {
        Observed { gpus }
    }

    fn four(may_open: [bool; 4]) -> Observed {
        let all = may_open.iter().enumerate();
        seen(all.map(|(n, may)| gpu(Make::Nvidia, n, *may)).collect())
    }

    fn slurms(indices: &[usize]) -> Grant {
        Grant::Slurms {
            indices: indices.to_vec(),
            uuids: None,
        }
    }

    fn numbers(grant: &Grant, seen: &Observed) -> Vec<String> {
        let offer = choose(grant, seen).unwrap();
        assert_eq!(offer.withheld, None);
        let own = |device: &Device| device.nodes[0].display().to_string();
        let nodes = offer.devices.iter().map(own);
        nodes
            .map(|node| node.trim_start_matches("/dev/nvidia").to_owned())
            .collect()
    }

    fn why(grant: &Grant, seen: &Observed) -> String {
        let offer = choose(grant, seen).unwrap();
        assert_eq!(offer.devices, []);
        offer.withheld.unwrap()
    }

    #[test]
    fn without_a_grant_there_are_none() {
        assert_eq!(numbers(&Grant::Nothing, &four([true; 4])), [""; 0]);
    }

    #[test]
    fn where_slurm_hides_the_others_it_is_those_that_may_be_opened() {
        let constrained = four([false, true, false, true]);
        // Whatever the indices mean there.
        assert_eq!(numbers(&slurms(&[0, 1]), &constrained), ["1", "3"]);
        assert!(why(&slurms(&[0, 1, 2]), &constrained).contains("may open 2 of this host's 4"));
    }

    #[test]
    fn where_it_hides_none_the_indices_tell_nothing() {
        let why = why(&slurms(&[2, 3]), &four([true; 4]));
        assert!(
            why.contains("may open 4") && why.contains("HPK_GPUS"),
            "{why}"
        );
        // All of them are meant.
        assert_eq!(
            numbers(&slurms(&[0, 1, 2, 3]), &four([true; 4])),
            ["0", "1", "2", "3"]
        );
    }

    /// As the driver tells of them: the bus has the last two the other way round.
    fn crossed() -> Observed {
        let mut crossed = four([true; 4]);
        for (gpu, bus) in crossed.gpus.iter_mut().zip(["1", "2", "4", "3"]) {
            gpu.told = Some(Told {
                bus: format!("0000:0{bus}:00.0"),
                minor: gpu.number,
                uuid: format!("GPU-{bus}"),
            });
        }
        crossed
    }

    #[test]
    fn uuids_tell_in_any_case() {
        let grant = |uuid: &str| Grant::Slurms {
            indices: vec![0],
            uuids: Some(vec![uuid.to_owned()]),
        };
        assert_eq!(numbers(&grant("GPU-3"), &crossed()), ["3"]);
        assert!(why(&grant("GPU-9"), &crossed()).contains("GPU-9"));
    }

    #[test]
    fn the_users_word_is_kept_or_refused() {
        let some = four([true, true, false, true]);
        assert_eq!(numbers(&Grant::All, &some), ["0", "1", "3"]);
        let named = |name| Grant::Named(vec![name]);
        assert_eq!(numbers(&named(Name::Number(3)), &some), ["3"]);
        let node = Name::Node("/dev/nvidia0".into());
        assert_eq!(numbers(&named(node), &some), ["0"]);
        for (number, word) in [(2, "may not be opened"), (7, "7 is no GPU")] {
            let refused = choose(&named(Name::Number(number)), &some).unwrap_err();
            assert!(refused.to_string().contains(word), "{refused}");
        }
    }

    #[test]
    fn of_amds_the_nth_is_given_with_the_node_that_all_share() {
        let amd = seen(vec![gpu(Make::Amd, 0, true), gpu(Make::Amd, 1, true)]);
        let offer = choose(&Grant::Named(vec![Name::Number(1)]), &amd).unwrap();
        let device = &offer.devices[0];
        assert_eq!(
            device.argument(),
            "amd.com/gpu=/dev/dri/renderD129,/dev/kfd"
        );
        let mut both = four([true; 4]);
        both.gpus.extend(amd.gpus);
        assert!(why(&slurms(&[0]), &both).contains("doesn't tell which"));
    }
}
