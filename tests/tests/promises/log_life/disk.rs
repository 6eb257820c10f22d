//! FAULTS 26: a disk that is full, failing or read-only stops the tail and nothing else, and the tail
//! goes on by itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bson::{Document, doc};
use tidewire_ops::temporary::Temporary;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, eventually, mongo, must_equal,
};

use super::{COLLECTIONS, PATIENCE, plan};

/// A small file system of its own.
struct Disk {
    dir: Temporary,
}

impl Disk {
    /// `None`, said loudly, where we may not mount.
    fn of(size: &str) -> Option<Self> {
        let dir = Temporary::new("disk").expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self { dir });
        }
        eprintln!("SKIPPED: a small disk needs root and tmpfs");
        None
    }

    /// An ext4 of its own in a file, that turns read-only by itself when it finds an error. `None`, said
    /// loudly, where we may not mount.
    fn that_fails() -> Option<Self> {
        let dir = Temporary::new("disk").expect("a folder");
        let disk = Self { dir };
        std::fs::create_dir(disk.mounted()).expect("a folder");
        let image = std::fs::File::create(disk.image()).expect("a file");
        image.set_len(256 << 20).expect("a sparse file");
        let made = Command::new("mkfs.ext4").arg("-q").arg(disk.image()).status();
        if made.is_ok_and(|status| status.success()) && disk.mount() {
            return Some(disk);
        }
        eprintln!("SKIPPED: a disk that fails needs root, a loop device and ext4");
        None
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn mounted(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn mount(&self) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop,errors=remount-ro"]).arg(self.image()).arg(self.mounted());
        mount.status().is_ok_and(|status| status.success())
    }

    /// An error is found: from now on nothing can be written, and what is not on the disk by now never is.
    fn fail(&self) {
        let synced = Command::new("sync").arg("-f").arg(self.mounted()).status().expect("sync");
        assert!(synced.success(), "what was written so far is there");
        let mut findmnt = Command::new("findmnt");
        let found = findmnt.args(["-no", "SOURCE"]).arg(self.mounted()).output().expect("findmnt");
        let device = String::from_utf8(found.stdout).expect("a device");
        let device = Path::new(device.trim()).file_name().expect("a device").to_owned();
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        std::fs::write(trigger, "1").expect("an error");
    }

    /// What an operator does about it.
    fn mend(&self) {
        let unmounted = Command::new("umount").arg(self.mounted()).status().expect("umount");
        assert!(unmounted.success(), "nothing holds the disk any more");
        let checked = Command::new("e2fsck").args(["-fy"]).arg(self.image()).output();
        assert!(checked.expect("e2fsck").status.code().is_some_and(|code| code <= 1), "mended");
        assert!(self.mount(), "mounted again");
    }

    /// Makes the log's files read-only for everybody, whoever has them open, or writable again.
    fn freeze(&self, flag: &str) {
        let data = self.mounted().join("data");
        let mut chattr = Command::new("chattr");
        chattr.arg(flag).args(["log.db", "log.db-wal"].map(|file| data.join(file)));
        assert!(chattr.status().expect("chattr").success(), "chattr {flag}");
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let mut mount = Command::new("mount");
        let status = mount.args(["-o", &options]).arg(self.dir.path()).status();
        assert!(status.expect("mount").success(), "remount with {options}");
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for path in [self.dir.path(), &self.mounted()] {
            let mut umount = Command::new("umount");
            let _ = umount.arg("-l").arg(path).stderr(Stdio::null()).status();
        }
    }
}

/// Some documents of 2 KB; the position of the last.
async fn insert(mongo: &Mongo, from: i32, count: i32) -> String {
    let mut session = mongo.client.start_session().await.expect("a session");
    let documents = (from..from + count).map(|n| doc! { "_id": n, "text": "x".repeat(2_000) });
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.insert_many(documents).session(&mut session).await.expect("insert");
    format!("{:016x}.00000000", super::time_of(&session))
}

async fn readiness(server: &Server) -> (u16, String) {
    let answer = reqwest::get(format!("{}/readyz", server.url())).await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a body"))
}

/// Writes until the log can't take more; how many documents there are then.
async fn until_unwritable(mongo: &Mongo, server: &Server, says: &str, mut from: i32) -> i32 {
    for _ in 0..200 {
        insert(mongo, from, 200).await;
        from += 200;
        let (status, body) = readiness(server).await;
        if status == 503 {
            assert!(body.contains("can't be written") && body.contains(says), "{body}");
            return from;
        }
    }
    panic!("it never became unwritable");
}

/// While the tail stands, pages are served; then it goes on alone and nothing is missing.
async fn serves_and_recovers(
    mongo: &Mongo,
    server: &mut Server,
    make_room: impl FnOnce(&mut Server),
    from: i32,
) {
    let token = server.token(&Claims::of("ann"));
    let (status, page) = server.pull(&token, "since=0&limit=5").await;
    assert_eq!((status, &page["count"]), (200, &serde_json::json!(5)));
    let mut client = Client::new(&server.url(), &token);
    client.sync_once().await;
    make_room(server);
    server.ready().await;
    let last = insert(mongo, from, 10).await;
    client.start();
    client.reaches(&last, PATIENCE).await;
    must_equal(&mongo.db, &plan(), &client.db()).await;
    client.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_tail_alone_and_room_lets_it_go_on() {
    let Some(disk) = Disk::of("12m") else { return };
    let mongo = mongo().await;
    insert(&mongo, 0, 100).await;
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    options.data_dir = Some(disk.data());
    options.expected_errors = vec!["capture stopped for now".into()];
    let mut server = Server::start(options).await;
    let from = until_unwritable(&mongo, &server, "full", 100).await;
    serves_and_recovers(&mongo, &mut server, |_| disk.remount("size=200m"), from).await;
    assert_eq!(server.stop().await.code(), Some(0));
    check_log(&disk.data());

    // Read-only from the start: said, and nothing is begun.
    disk.remount("ro");
    server.options.expected_errors.push("data folder".into());
    server.launch();
    let ended = server.ended(std::time::Duration::from_secs(30)).await;
    assert_eq!(ended.code(), Some(1), "{}", server.log_text());
    assert!(server.log_text().contains("Read-only file system"), "{}", server.log_text());
    disk.remount("rw");
    server.launch();
    server.ready().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_turns_read_only_stops_the_tail_alone_and_the_mended_one_goes_on() {
    let Some(disk) = Disk::that_fails() else { return };
    let mongo = mongo().await;
    insert(&mongo, 0, 100).await;
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    options.data_dir = Some(disk.mounted().join("data"));
    options.expected_errors = vec!["capture stopped for now".into()];
    let mut server = Server::start(options).await;
    let token = server.token(&Claims::of("ann"));
    let mut client = Client::new(&server.url(), &token);
    client.start();
    client.reaches(&insert(&mongo, 100, 100).await, PATIENCE).await;
    disk.freeze("+i");
    let from = until_unwritable(&mongo, &server, "", 200).await;
    disk.freeze("-i");
    server.ready().await;
    client.reaches(&insert(&mongo, from, 10).await, PATIENCE).await;
    disk.fail();
    let from = until_unwritable(&mongo, &server, "", from + 10).await;
    let (status, page) = server.pull(&token, "since=0&limit=5").await;
    assert_eq!((status, &page["count"]), (200, &serde_json::json!(5)));
    // Such a disk is written again only when it was mended: the server is stopped for that.
    assert_eq!(server.stop().await.code(), Some(0));
    disk.mend();
    check_log(&server.data_dir());
    server.launch();
    server.ready().await;
    client.reaches(&insert(&mongo, from, 10).await, PATIENCE).await;
    must_equal(&mongo.db, &plan(), &client.db()).await;
    assert!(!client.log_text().contains("resync"), "{}", client.log_text());
    client.stop().await;
    assert_eq!(server.stop().await.code(), Some(0));
    check_log(&server.data_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_output_error_stops_the_tail_alone_and_passes() {
    let limit = |pid: u32, bytes: &str| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &pid.to_string(), &format!("--fsize={bytes}:")]).status()
    };
    if !limit(std::process::id(), "unlimited").is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: prlimit is missing");
        return;
    }
    let mongo = mongo().await;
    insert(&mongo, 0, 100).await;
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    // A write beyond the limit is then an error and no signal.
    options.before = Some("trap '' XFSZ".into());
    options.expected_errors = vec!["capture stopped for now".into()];
    let mut server = Server::start(options).await;
    let pid = server.id().expect("it runs");
    limit(pid, "4000000").expect("prlimit");
    let from = until_unwritable(&mongo, &server, "disk I/O error", 100).await;
    let lift = |_: &mut Server| {
        limit(pid, "unlimited").expect("prlimit");
    };
    serves_and_recovers(&mongo, &mut server, lift, from).await;
    assert_eq!(server.stop().await.code(), Some(0));
    check_log(&server.data_dir());
}

fn check_log(dir: &Path) {
    let said = super::ops_done(&["log", "check", "--data-dir", super::text(dir)]);
    assert!(said.contains("whole"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_a_folder_is_refused_and_the_first_does_not_notice() {
    let mongo = mongo().await;
    let load = super::Load::start(&mongo, 1).await;
    let mut server = Server::start(ServerOptions::following(&mongo, &COLLECTIONS)).await;
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    options.data_dir = Some(server.data_dir());
    options.expected_errors = vec!["in use by another".into()];
    let mut second = Server::start_unready(options);
    let ended = second.ended(std::time::Duration::from_secs(30)).await;
    assert_eq!(ended.code(), Some(1));
    assert!(second.log_text().contains("in use by another"), "{}", second.log_text());
    load.more(20).await;
    let last = load.end().await;
    let token = server.token(&Claims::of("ann"));
    let mut pages = super::Pages::new(1_000);
    pages.reach(&server, &token, &last).await;
    eventually("the first is ready", PATIENCE, || async {
        (readiness(&server).await.0 == 200).then_some(())
    })
    .await;
    assert_eq!(server.stop().await.code(), Some(0));
}
