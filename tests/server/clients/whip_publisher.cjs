// A WHIP publisher on libdatachannel, as OBS is one: `node whip_publisher.cjs URL`. Sends the RTP packets (H.264, payload
// type 96, SSRC 42) that come to a port which it prints; says how it is connected; ends the publication on SIGTERM.
const dgram = require('node:dgram')
const rtc = require('node-datachannel')

async function main(url) {
  const peer = new rtc.PeerConnection('publisher', { iceServers: [] })
  const video = new rtc.Video('video', 'SendOnly')
  video.addH264Codec(96)
  video.addSSRC(42, 'onlooker', 'stream', 'track')
  const track = peer.addTrack(video)
  peer.onStateChange((state) => console.log(state))
  const gathered = new Promise((done) => peer.onGatheringStateChange((state) => state === 'complete' && done()))
  peer.setLocalDescription()
  await gathered
  const offer = { method: 'POST', headers: { 'content-type': 'application/sdp' }, body: peer.localDescription().sdp }
  const reply = await fetch(url, offer)
  if (reply.status !== 201) throw new Error(`${reply.status}: ${await reply.text()}`)
  peer.setRemoteDescription(await reply.text(), 'answer')
  const place = new URL(reply.headers.get('location'), url)
  const pictures = dgram.createSocket('udp4')
  pictures.on('message', (packet) => track.isOpen() && track.sendMessageBinary(packet))
  pictures.bind(0, '127.0.0.1', () => console.log(`port ${pictures.address().port}`))
  process.on('SIGTERM', async () => {
    console.log(`ended ${(await fetch(place, { method: 'DELETE' })).status}`)
    pictures.close()
    peer.close()
    rtc.cleanup()
    process.exit(0)
  })
}

main(process.argv[2])
