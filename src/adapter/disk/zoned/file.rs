//! The file that holds the zones of an image.
//!
//! It lies beside the image and is read when the image's lock is taken: until
//! then another daemon may change it. Records are written before the data that
//! they are about, see DESIGN.md, "Zones".

use crate::adapter::disk::sync::{last_errno, retry};
use crate::adapter::error::{Refusal, describe};
use crate::adapter::image::Image;
use crate::blk::SECTOR_SIZE;
use crate::blk::zones::{Appends, Geometry, ZonedConfig, Zones, record};
use rustix::fs::{
    Advice, Mode, OFlags, SeekFrom, fadvise, fdatasync, fsync, open, renameat_with, seek,
};
use rustix::io::{Errno, pread, pwrite};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Most appends in the file that are looked at: every head of every virtqueue
/// of a device of usual size.
const MAX_APPENDS: u64 = 1 << 20;

/// An open file of zones.
#[derive(Debug)]
pub struct ZoneFile {
    fd: OwnedFd,
    /// For messages.
    name: String,
    config: ZonedConfig,
    geometry: Geometry,
    /// No other host can have the image open, nor this.
    local: bool,
    /// Something could not be written: everything has to be, next time.
    stale: bool,
}

impl ZoneFile {
    /// Open the file at `path`, or make it if there is none.
    pub fn open(path: &Path, config: ZonedConfig, image: &Image) -> Result<Self, Refusal> {
        let name = path.display().to_string();
        let cannot =
            |what: &str, e: Errno| Refusal(format!("cannot {what} {name}: {}", describe(e)));
        let geometry = config.geometry(image.size() / SECTOR_SIZE);
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = match open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                require_empty(image, &name)?;
                create(path, &config, &geometry).map_err(|e| cannot("make", e))?;
                open(path, flags, Mode::empty())
            }
            other => other,
        };
        let fd = fd.map_err(|e| cannot("open", e))?;
        let file = Self { fd, name, config, geometry, local: image.is_local(), stale: false };
        file.check()?;
        Ok(file)
    }

    /// The open file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn wrong(&self, what: impl core::fmt::Display) -> Refusal {
        Refusal(format!("{} is not for this disk: {what}", self.name))
    }

    fn check(&self) -> Result<(), Refusal> {
        let mut bytes = [0; record::HEADER];
        self.read(&mut bytes, 0)?;
        let found = record::read_header(&bytes).map_err(|bad| self.wrong(bad))?;
        let Geometry { capacity, zone_sectors, conventional } = self.geometry;
        if found != self.geometry {
            return Err(self.wrong(format!(
                "it has zones of {} sectors, {} of them conventional, on {} sectors; expected {}, {} and {}",
                found.zone_sectors,
                found.conventional,
                found.capacity,
                zone_sectors,
                conventional,
                capacity
            )));
        }
        Ok(())
    }

    fn read(&self, mut to: &mut [u8], mut at: u64) -> Result<(), Refusal> {
        while !to.is_empty() {
            match retry(|| pread(&self.fd, &mut *to, at)) {
                Ok(0) => return Err(self.wrong("it is too short")),
                Ok(n) => (to, at) = (&mut to[n..], at + n as u64),
                Err(e) => {
                    return Err(Refusal(format!("cannot read {}: {}", self.name, describe(e))));
                }
            }
        }
        Ok(())
    }

    /// The zones as somebody left them.
    pub fn load(&mut self) -> Result<Zones, Refusal> {
        if !self.local {
            // Another host may have written since the header was looked at.
            let _ = fadvise(&self.fd, 0, None, Advice::DontNeed);
        }
        self.check()?;
        let mut bytes = vec![0; self.geometry.zones() as usize * record::ZONE];
        self.read(&mut bytes, record::zone_at(0))?;
        let (records, _) = bytes.as_chunks();
        let zones: Result<Vec<_>, _> =
            (0..).zip(records).map(|(number, bytes)| record::read_zone(number, bytes)).collect();
        let zones = zones.map_err(|bad| self.wrong(bad))?;
        let end = seek(&self.fd, SeekFrom::End(0)).unwrap_or(0);
        let start = record::appends_at(&self.geometry);
        let slots = (end.saturating_sub(start) / record::APPEND as u64).min(MAX_APPENDS);
        let mut bytes = vec![0; slots as usize * record::APPEND];
        self.read(&mut bytes, start)?;
        let (records, _) = bytes.as_chunks();
        let appends = (0..).zip(records).map(|(slot, bytes)| record::read_append(slot, bytes));
        let appends = Appends::restore(appends);
        self.stale = false;
        Zones::restore(&self.config, self.geometry.capacity, zones, appends)
            .ok_or_else(|| self.wrong("its zones contradict each other"))
    }

    /// Write down what has changed: appends before the write pointers that they
    /// have moved.
    pub fn save(&mut self, zones: &mut Zones) -> Result<(), Errno> {
        let start = record::appends_at(&self.geometry);
        let mut result = Ok(());
        while let Some((slot, append)) = zones.appends().next_changed() {
            let at = start + u64::from(slot) * record::APPEND as u64;
            result = result.and(write(&self.fd, &record::append(slot, append.as_ref()), at));
        }
        if self.stale {
            for (number, zone) in (0..).zip(zones.zones()) {
                let bytes = record::zone(number, zone);
                result = result.and(write(&self.fd, &bytes, record::zone_at(number)));
            }
        }
        while let Some(number) = zones.next_changed() {
            let bytes = record::zone(number, &zones.zones()[number as usize]);
            result = result.and(write(&self.fd, &bytes, record::zone_at(number)));
        }
        self.stale = result.is_err();
        result
    }

    /// Another owner may have it.
    pub fn let_go(&self) {
        if !self.local {
            // Whatever fails here fails again at the next flush of whoever it is.
            let _ = self.sync();
        }
    }

    /// Make what was saved durable.
    pub fn sync(&self) -> Result<(), Errno> {
        retry(|| fdatasync(&self.fd))
    }
}

/// Nothing that is in an image may be outside all write pointers.
fn require_empty(image: &Image, name: &str) -> Result<(), Refusal> {
    if image.is_block() {
        return Ok(());
    }
    match seek(image.fd(), SeekFrom::Data(0)) {
        Err(Errno::NXIO) => Ok(()),
        _ => Err(Refusal(format!(
            "there is no {name} to say how far the zones of this image are written, \
             expected one, or an image without data to make it for"
        ))),
    }
}

/// Make a file in which no zone is written. It is there whole or not at all.
fn create(path: &Path, config: &ZonedConfig, geometry: &Geometry) -> Result<(), Errno> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let fd = open(&draft, flags, Mode::from_raw_mode(0o600))?;
    let mut bytes = record::header(geometry).to_vec();
    for (number, zone) in (0..).zip(Zones::empty(config, geometry.capacity).zones()) {
        bytes.extend_from_slice(&record::zone(number, zone));
    }
    let made = write(&fd, &bytes, 0).and_then(|()| fsync(&fd)).and_then(|()| {
        // Somebody else may have made it meanwhile, and even use it already.
        let (cwd, how) = (rustix::fs::CWD, rustix::fs::RenameFlags::NOREPLACE);
        match renameat_with(cwd, &draft, cwd, path, how) {
            Err(Errno::EXIST) => Ok(()),
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::rename(&draft, path),
            other => other,
        }
    });
    let _ = rustix::fs::unlink(&draft);
    made
}

fn write(fd: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match retry(|| pwrite(fd, bytes, at))? {
            0 => return Err(last_errno()),
            n => (bytes, at) = (&bytes[n..], at + n as u64),
        }
    }
    Ok(())
}
