//! Requests: as many at once as the ring holds, or one at a time.

use super::{Client, ClientError, PAGE};
use crate::driver::{
    BlkDone, BlkOp, BlkRequest, BlkStatus, Framing, RangeSegment, RequestBuffers, Span,
};
use vm_memory::{Bytes as _, GuestAddress};

/// Guest memory of a blocking request: header, status and table, then data.
const SCRATCH: u64 = 2 * PAGE;

impl Client {
    /// Put a request into a vring; [`Client::kick`] tells the device.
    pub fn submit(
        &mut self,
        vring: u16,
        request: &BlkRequest<'_>,
        buffers: &RequestBuffers<'_>,
        framing: &Framing,
    ) -> Result<u16, ClientError> {
        let (driver, memory) = self.driver(vring)?;
        Ok(driver.submit(memory, request, buffers, framing)?)
    }

    /// Publish what was submitted, and kick if the device wants it.
    pub fn kick(&mut self, vring: u16) -> Result<(), ClientError> {
        let (driver, memory) = self.driver(vring)?;
        driver.publish(memory)?;
        if driver.kick_needed(memory)? {
            self.signal_kick(vring)?;
            self.drain()?;
        }
        Ok(())
    }

    /// The next completed request, if there is one now.
    pub fn reap(&mut self, vring: u16) -> Result<Option<BlkDone>, ClientError> {
        let (driver, memory) = self.driver(vring)?;
        Ok(driver.reap(memory)?)
    }

    /// Wait for the next completed request. Meanwhile a back-end that dies is
    /// connected to again.
    pub fn wait_done(&mut self, vring: u16) -> Result<BlkDone, ClientError> {
        let until = self.clock.now() + self.config.patience;
        loop {
            if let Some(done) = self.reap(vring)? {
                return Ok(done);
            }
            let (driver, memory) = self.driver(vring)?;
            if !driver.ring_mut().enable_calls(memory)? {
                self.turn("a completion", until)?;
            }
        }
    }

    /// Carry out one request, its data through guest memory, and wait.
    ///
    /// `data` holds what is written, and afterwards what was read. No other
    /// request may be under way on this vring.
    pub fn request(
        &mut self,
        vring: u16,
        op: BlkOp<'_>,
        data: &mut [u8],
    ) -> Result<(), ClientError> {
        let area = self.data_area();
        let at = area.start + SCRATCH;
        let (room, wanted) = (area.end.saturating_sub(at), data.len() as u64);
        if wanted > room {
            return Err(ClientError::TooBig { room, wanted });
        }
        self.memory
            .write_slice(data, GuestAddress(at))
            .map_err(|_| ClientError::TooBig { room, wanted })?;
        let span = [Span { addr: at, len: data.len() as u32 }];
        let buffers = RequestBuffers {
            header: area.start,
            data: if data.is_empty() { &[] } else { &span },
            status: area.start + 16,
            table: Some(area.start + PAGE),
        };
        let request = BlkRequest { op, token: 0 };
        self.submit(vring, &request, &buffers, &Framing::CLASSIC)?;
        self.kick(vring)?;
        let done = self.wait_done(vring)?;
        if done.status != BlkStatus::Ok {
            return Err(ClientError::Request(done.status));
        }
        self.memory
            .read_slice(data, GuestAddress(at))
            .map_err(|_| ClientError::TooBig { room, wanted })
    }

    /// Read sectors, and wait.
    pub fn read(&mut self, vring: u16, sector: u64, data: &mut [u8]) -> Result<(), ClientError> {
        self.request(vring, BlkOp::In { sector }, data)
    }

    /// Write sectors, and wait.
    pub fn write(&mut self, vring: u16, sector: u64, data: &[u8]) -> Result<(), ClientError> {
        self.request(vring, BlkOp::Out { sector }, &mut data.to_vec())
    }

    /// Make durable what was written, and wait.
    pub fn flush(&mut self, vring: u16) -> Result<(), ClientError> {
        self.request(vring, BlkOp::Flush, &mut [])
    }

    /// Discard one range, and wait.
    pub fn discard(&mut self, vring: u16, range: RangeSegment) -> Result<(), ClientError> {
        self.request(vring, BlkOp::Discard(&[range]), &mut [0; 16])
    }

    /// Zero one range, and wait.
    pub fn write_zeroes(&mut self, vring: u16, range: RangeSegment) -> Result<(), ClientError> {
        self.request(vring, BlkOp::WriteZeroes(&[range]), &mut [0; 16])
    }
}
