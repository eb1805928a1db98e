//! Options about the disk that the guest sees, beyond its bytes.

use super::error::Refusal;
use super::image::Image;
use super::limits::{self, DiskLimits};
use crate::blk::Lifetime;
use crate::blk::zones::ZonedConfig;
use clap::Args;
use std::path::{Path, PathBuf};

/// Part of the options of `midflight serve`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Disk")]
pub struct DiskArgs {
    /// Physical block size, in bytes [default: what the block device says]
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub physical_block_size: Option<u32>,
    /// Smallest good size of a request, in bytes [default: what the block
    /// device says]
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub min_io_size: Option<u32>,
    /// Best size of a request, in bytes [default: what the block device says]
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub opt_io_size: Option<u32>,
    /// Bytes before the first physical block [default: what the block device
    /// says]
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub alignment_offset: Option<u32>,
    /// Unit of a discard, in bytes [default: what the block device says]
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub discard_granularity: Option<u32>,
    /// Offer secure erase: a block device does it itself, a file is written
    /// over where its file system writes in place
    #[arg(long)]
    pub secure_erase: bool,
    /// Offer the disk's lifetime: `device` for what an eMMC says of itself, or
    /// three numbers PRE_EOL,TYPE_A,TYPE_B
    #[arg(long, value_name = "L", value_parser = lifetime)]
    pub lifetime: Option<LifetimeSource>,
    /// Serve a zoned disk with zones of this size: a power of two with K, M or G
    #[arg(long, value_name = "SIZE", value_parser = zone_size)]
    pub zone_size: Option<u32>,
    /// So many zones at the start are conventional
    #[arg(long, value_name = "N", default_value_t = 0, requires = "zone_size")]
    pub conventional_zones: u32,
    /// Most zones that may be open, 0 for any number
    #[arg(long, value_name = "N", default_value_t = 0, requires = "zone_size")]
    pub max_open_zones: u32,
    /// Most zones that may be open or closed, 0 for any number
    #[arg(long, value_name = "N", default_value_t = 0, requires = "zone_size")]
    pub max_active_zones: u32,
    /// The file that says how far each zone is written, made if there is none
    /// [default: the image's name with .zones]
    #[arg(long, value_name = "FILE", requires = "zone_size")]
    pub zone_file: Option<PathBuf>,
}

/// Values of `--lifetime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifetimeSource {
    /// Ask the device.
    Device,
    /// These.
    Given(Lifetime),
}

impl DiskArgs {
    /// What the operator says instead of the device.
    fn given(&self) -> DiskLimits {
        DiskLimits {
            physical: self.physical_block_size,
            alignment_offset: self.alignment_offset,
            min_io: self.min_io_size,
            opt_io: self.opt_io_size,
            discard_granularity: self.discard_granularity,
            ..DiskLimits::default()
        }
    }

    /// Limits of the disk, by the operator or else by the device.
    pub fn limits(&self, image: &Image) -> DiskLimits {
        self.given().or(image.limits())
    }

    /// The lifetime to offer.
    pub fn lifetime(&self, image: &Image) -> Result<Option<Lifetime>, Refusal> {
        match self.lifetime {
            None => Ok(None),
            Some(LifetimeSource::Given(lifetime)) => Ok(Some(lifetime)),
            Some(LifetimeSource::Device) => {
                let found = image.sysfs().and_then(limits::lifetime);
                found.map(Some).ok_or_else(|| {
                    Refusal(
                        "--lifetime: expected a device that says how worn it is, or three numbers"
                            .into(),
                    )
                })
            }
        }
    }

    /// The zones to offer, and where their state is kept.
    pub fn zones(&self, image: &Path, logical: u32) -> Option<(ZonedConfig, PathBuf)> {
        let size = self.zone_size?;
        let file = self.zone_file.clone().unwrap_or_else(|| {
            let mut name = image.as_os_str().to_owned();
            name.push(".zones");
            name.into()
        });
        let block = logical / 512;
        let config = ZonedConfig {
            zone_sectors: size,
            conventional: self.conventional_zones,
            max_open: match (self.max_open_zones, self.max_active_zones) {
                // More cannot be open than active.
                (0, active) => active,
                (open, _) => open,
            },
            max_active: self.max_active_zones,
            max_append_sectors: size.min(1008 / block * block),
        };
        Some((config, file))
    }
}

fn bytes(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(n) if n.is_multiple_of(512) && n <= 1 << 30 => Ok(n),
        _ => Err("expected a multiple of 512 up to 1 GiB".into()),
    }
}

/// In sectors.
fn zone_size(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'K')) => (&text[..at], 1 << 10),
        Some((at, 'M')) => (&text[..at], 1 << 20),
        Some((at, 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    match bytes {
        Some(n) if n.is_power_of_two() && (512..=1 << 40).contains(&n) => Ok((n / 512) as u32),
        _ => Err("expected a power of two from 512 to 1024G".into()),
    }
}

fn lifetime(text: &str) -> Result<LifetimeSource, String> {
    if text == "device" {
        return Ok(LifetimeSource::Device);
    }
    let numbers: Result<Vec<u8>, _> = text.split(',').map(str::parse).collect();
    if let Ok([pre_eol_info, typ_a, typ_b]) = numbers.as_deref() {
        let lifetime = Lifetime { pre_eol_info: *pre_eol_info, typ_a: *typ_a, typ_b: *typ_b };
        if lifetime.is_valid() {
            return Ok(LifetimeSource::Given(lifetime));
        }
    }
    Err("expected device or three numbers, the first up to 3, the others up to 11".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cli_sizes_and_lifetimes_are_read_or_refused() {
        assert_eq!(zone_size("256M"), Ok(1 << 19));
        assert_eq!(zone_size("4K"), Ok(8));
        assert_eq!(zone_size("1024G"), Ok(1 << 31));
        for wrong in ["", "M", "3M", "256", "2048G", "18446744073709551615G", "-4K"] {
            assert!(zone_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(lifetime("device"), Ok(LifetimeSource::Device));
        let given = Lifetime { pre_eol_info: 1, typ_a: 0, typ_b: 11 };
        assert_eq!(lifetime("1,0,11"), Ok(LifetimeSource::Given(given)));
        for wrong in ["", "1,2", "4,0,0", "0,12,0", "0,0,0,0", "a,b,c"] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
        assert_eq!(bytes("4096"), Ok(4096));
        assert!(bytes("100").is_err());
    }
}
