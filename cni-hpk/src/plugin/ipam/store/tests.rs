use super::*;
use crate::plugin::pools::PoolKeys;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hpk-store-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn store(&self) -> Store {
        Store::open(self.0.clone()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn owner(id: &str) -> Owner {
    Owner {
        container_id: id.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

fn set(subnet: &str) -> RangeSet {
    vec![Pool::of(subnet.parse().unwrap()).unwrap()]
}

fn give(store: &Store, sets: &[RangeSet], id: &str) -> Result<String, Error> {
    let given = store.allocate(sets, &[], &owner(id))?;
    let given: Vec<String> = given.iter().map(|(it, _)| it.to_string()).collect();
    Ok(given.join(" "))
}

#[test]
fn addresses_are_given_in_a_round_and_the_gateways_never() {
    let folder = Folder::new("round");
    let (store, sets) = (folder.store(), [set("10.1.0.0/29")]);
    let given: Vec<String> = ["a", "b", "c", "d", "e"]
        .iter()
        .map(|id| give(&store, &sets, id).unwrap())
        .collect();
    assert_eq!(
        given,
        ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]
    );
    store.release(&owner("b")).unwrap();
    store.release(&owner("d")).unwrap();
    assert_eq!(give(&store, &sets, "f").unwrap(), "10.1.0.3");
    store.release(&owner("f")).unwrap();
    assert_eq!(give(&store, &sets, "g").unwrap(), "10.1.0.5");
}

#[test]
fn a_full_range_is_an_error_that_says_which_and_leaves_nothing() {
    let folder = Folder::new("full");
    let (store, sets) = (folder.store(), [set("fd00::/64"), set("10.1.0.0/30")]);
    assert_eq!(give(&store, &sets, "a").unwrap(), "fd00::2 10.1.0.2");
    let error = give(&store, &sets, "b").unwrap_err();
    assert!(error.to_string().contains("10.1.0.1-10.1.0.2"), "{error}");
    assert_eq!(store.leases().unwrap().len(), 2);
}

#[test]
fn the_same_attachment_gets_no_second_lease() {
    let folder = Folder::new("same");
    let (store, sets) = (folder.store(), [set("10.1.0.0/24")]);
    give(&store, &sets, "a").unwrap();
    let error = give(&store, &sets, "a").unwrap_err();
    assert!(matches!(error, Error::LeasedAlready { .. }));
}

#[test]
fn an_address_asked_for_is_given_if_it_is_there_and_free() {
    let folder = Folder::new("asked");
    let (store, sets) = (folder.store(), [set("10.1.0.0/24")]);
    let ask = |id: &str, address: &str| {
        let address = address.parse().unwrap();
        store.allocate(&sets, &[address], &owner(id))
    };
    assert_eq!(ask("a", "10.1.0.77").unwrap()[0].0.to_string(), "10.1.0.77");
    assert!(matches!(ask("b", "10.1.0.77"), Err(Error::AddressTaken(_))));
    assert!(matches!(ask("b", "10.1.0.1"), Err(Error::AddressTaken(_))));
    assert!(matches!(ask("b", "10.9.0.1"), Err(Error::NoSuchAddress(_))));
    assert_eq!(store.leases().unwrap().len(), 1);
}

#[test]
fn what_a_killed_run_left_is_free() {
    let folder = Folder::new("killed");
    let (store, sets) = (folder.store(), [set("10.1.0.0/30")]);
    std::fs::write(folder.0.join("10.1.0.2"), "").unwrap();
    assert_eq!(give(&store, &sets, "a").unwrap(), "10.1.0.2");
    std::fs::write(folder.0.join("10.1.0.9"), "").unwrap();
    store.keep(|_| true).unwrap();
    assert_eq!(store.leases().unwrap().len(), 1);
}

#[test]
fn a_set_of_two_pools_goes_on_in_the_second() {
    let folder = Folder::new("pools");
    let keys = |end: &str| PoolKeys {
        subnet: Some("10.1.0.0/24".to_owned()),
        range_start: Some(end.to_owned()),
        range_end: Some(end.to_owned()),
        gateway: None,
    };
    let set = vec![
        Pool::read(&keys("10.1.0.5")).unwrap(),
        Pool::read(&keys("10.1.0.9")).unwrap(),
    ];
    let (store, sets) = (folder.store(), [set]);
    assert_eq!(give(&store, &sets, "a").unwrap(), "10.1.0.5");
    assert_eq!(give(&store, &sets, "b").unwrap(), "10.1.0.9");
    store.release(&owner("a")).unwrap();
    assert_eq!(give(&store, &sets, "c").unwrap(), "10.1.0.5");
    assert!(give(&store, &sets, "d").is_err());
}

#[test]
fn the_stock_plugins_files_are_read() {
    let folder = Folder::new("stock");
    let (store, sets) = (folder.store(), [set("10.1.0.0/24")]);
    std::fs::write(folder.0.join("10.1.0.2"), "other\r\neth0").unwrap();
    std::fs::write(folder.0.join("10.1.0.3"), "ancient").unwrap();
    std::fs::write(folder.0.join("last_reserved_ip.0"), "10.1.0.1").unwrap();
    assert_eq!(give(&store, &sets, "a").unwrap(), "10.1.0.4");
    store.release(&owner("other")).unwrap();
    assert_eq!(store.leases().unwrap().len(), 2);
}
