use tokio::time::{Instant, sleep};

use super::*;

#[tokio::test]
async fn one_holder_at_a_time_and_none_after_the_drop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lease");
    let lease = Lease::try_acquire(&path).unwrap().unwrap();
    assert!(Lease::try_acquire(&path).unwrap().is_none());
    assert!(lease.is_ours());
    assert_eq!(
        Watch::new(&path).unwrap().look().unwrap().unwrap().pid,
        std::process::id()
    );
    drop(lease);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(Lease::try_acquire(&path).unwrap().is_some());
}

#[tokio::test]
async fn a_heartbeat_changes_the_bytes_but_not_the_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lease");
    let lease = Lease::try_acquire(&path).unwrap().unwrap();
    let before = fs::read(&path).unwrap();
    let mut holder: Holder = serde_json::from_slice(&before).unwrap();
    holder.beat = format!("{:012}", 77);
    assert!(rewrite(&path, &holder).unwrap());
    let after = fs::read(&path).unwrap();
    assert!(after != before && after.len() == before.len() && lease.is_ours());
    // Not ours any more: left alone.
    holder.nonce = "other".into();
    assert!(!rewrite(&path, &holder).unwrap());
}

#[test]
fn silence_is_measured_by_the_waiters_own_clock() {
    let mut watch = Watch::new(Path::new("/x")).unwrap();
    let start = Instant::now();
    let at = |s| start + Duration::from_secs(s);
    assert!(!watch.is_expired(b"1", at(0)));
    assert!(!watch.is_expired(b"1", at(29)));
    assert!(!watch.is_expired(b"2", at(30)));
    assert!(!watch.is_expired(b"2", at(59)));
    assert!(watch.is_expired(b"2", at(60)));
}

#[tokio::test]
async fn a_holder_that_died_on_this_machine_is_removed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lease");
    let dead = Holder {
        started: 1,
        ..Holder::this_process().unwrap()
    };
    fs::write(&path, serde_json::to_vec(&dead).unwrap()).unwrap();
    assert_eq!(Watch::new(&path).unwrap().look().unwrap(), None);
    assert!(Lease::try_acquire(&path).unwrap().is_some());
    // One of another machine is given its time.
    let far = Holder {
        place: "elsewhere".into(),
        ..dead
    };
    fs::write(&path, serde_json::to_vec(&far).unwrap()).unwrap();
    assert_eq!(Watch::new(&path).unwrap().look().unwrap(), Some(far));
}

#[test]
fn a_lease_that_came_to_life_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lease");
    fs::write(&path, "living").unwrap();
    Watch::new(&path).unwrap().remove_dead(b"dead").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"living");
    Watch::new(&path).unwrap().remove_dead(b"living").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_gets_nowhere_is_given_up_and_one_that_gets_on_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lease");
    let lease = Lease::try_acquire(&path).unwrap().unwrap();
    let mut watch = Watch::new(&path).unwrap();
    // Slow, but at work: for an hour the waiter finds it alive, and it isn't asked to give up.
    let work = async {
        for _ in 0..3600 / STALL.as_secs() * 2 {
            let half = Instant::now() + STALL / 2;
            while Instant::now() < half {
                sleep(HEARTBEAT).await;
                assert!(watch.look().unwrap().is_some());
            }
            lease.pulse().beat();
        }
    };
    tokio::select! {
        () = work => {}
        () = lease.hangs() => panic!("work that gets on was given up"),
    }
    // It hangs: it is told, beats no more, and the waiter has the lease after that time and the expiry.
    let hung = Instant::now();
    lease.hangs().await;
    assert!(
        hung.elapsed() < STALL + HEARTBEAT * 2,
        "{:?}",
        hung.elapsed()
    );
    while watch.look().unwrap().is_some() {
        sleep(HEARTBEAT).await;
    }
    let took = hung.elapsed();
    assert!(took < STALL + EXPIRY + HEARTBEAT * 4, "{took:?}");
    assert!(!lease.is_ours());
    let next = Lease::try_acquire(&path).unwrap().unwrap();
    drop(lease);
    assert!(
        next.is_ours(),
        "the one that was given up leaves its successor alone"
    );
}
