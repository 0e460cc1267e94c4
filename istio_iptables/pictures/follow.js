"use strict";
/* Which class a packet belongs to: the classes, and what becomes of them, are in the page. */
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("packet");
const answer = document.getElementById("answer");

/* An address as its family and its number; null for what is none. */
function address(text) {
  const four = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text);
  if (four) {
    const parts = four.slice(1).map(Number);
    if (parts.some((part) => part > 255)) return null;
    return { family: "ipv4", number: parts.reduce((sum, part) => sum * 256n + BigInt(part), 0n) };
  }
  let plain;
  try {
    plain = new URL(`http://[${text}]/`).hostname.slice(1, -1);
  } catch {
    return null;
  }
  const [head, tail] = plain.split("::");
  const left = head ? head.split(":") : [];
  const right = tail ? tail.split(":") : [];
  const zeros = plain.includes("::") ? Array(8 - left.length - right.length).fill("0") : [];
  const groups = [...left, ...zeros, ...right];
  const number = groups.reduce((sum, group) => sum * 65536n + BigInt(`0x${group}`), 0n);
  return { family: "ipv6", number };
}

function isWithin(field, item, value) {
  if (field === "source" || field === "destination") {
    const [first, last] = item.split("-").map((each) => each.split("/"));
    const start = address(first[0]).number;
    if (last) return start <= value && value <= address(last[0]).number;
    const bits = address(first[0]).family === "ipv4" ? 32 : 128;
    const free = BigInt(bits - (first[1] === undefined ? bits : Number(first[1])));
    return start >> free === value >> free;
  }
  if (field.endsWith("interface")) {
    return item.endsWith("+") ? value.startsWith(item.slice(0, -1)) : value === item;
  }
  if (field === "state") return value === item;
  if (field.endsWith("mark")) {
    const [wanted, mask] = item.split("/").map(BigInt);
    return (BigInt(value) & (mask === undefined ? 0xffffffffn : mask)) === wanted;
  }
  if (field === "protocol" && item in data.protocols) return value === data.protocols[item];
  const [low, high] = item.split("-").map(Number);
  return low <= value && value <= (high === undefined ? low : high);
}

function fits(group, packet) {
  return (
    group.family === packet.family &&
    group.direction === packet.direction &&
    group.conditions.every(({ field, among, but }) => {
      const value = packet[field];
      return (
        (among.length === 0 || among.some((item) => isWithin(field, item, value))) &&
        !but.some((item) => isWithin(field, item, value))
      );
    })
  );
}

/* The address that is sent from to loopback or to the pod itself; null for what leaves the pod. */
function sourceAtHome(to, pod) {
  const isFour = to.family === "ipv4";
  if (isFour ? to.number >> 24n === 127n : to.number === 1n) return address(isFour ? "127.0.0.1" : "::1");
  return to.number === address(pod).number ? to : null;
}

/* What was typed, or a sentence that says what is wrong with it. */
function read() {
  const typed = Object.fromEntries([...new FormData(form)].map(([name, text]) => [name, text.trim()]));
  const to = address(typed.destination);
  if (to === null) return `${typed.destination || "nothing"} is not an address to send to`;
  const usual = data.usual[to.family];
  if (usual === undefined) return `there are no rules for ${to.family === "ipv4" ? "IPv4" : "IPv6"} here`;
  const own = typed.direction === "out" ? sourceAtHome(to, usual.out) : null;
  const from = typed.source || own === null ? address(typed.source || usual[typed.direction]) : own;
  if (from === null || from.family !== to.family) return `${typed.source} is not an address of the same family`;
  const packet = {
    family: to.family,
    direction: typed.direction,
    protocol: data.protocols[typed.protocol],
    source: from.number,
    destination: to.number,
    state: typed.state,
  };
  for (const [name, text, most] of [
    ["source_port", typed.source_port || "40000", 65535],
    ["destination_port", typed.destination_port || "80", 65535],
    ["uid", typed.uid || "1000", 4294967294],
    ["gid", typed.gid || typed.uid || "1000", 4294967294],
    ["mark", typed.mark || "0", 4294967295],
    ["connmark", typed.connmark || "0", 4294967295],
  ]) {
    const number = /^(\d+|0x[0-9a-f]+)$/i.test(text) ? Number(text) : NaN;
    if (!(number <= most)) return `${text} is no ${name.replace("_", " ")}: a number up to ${most}`;
    packet[name] = number;
  }
  packet[typed.direction === "in" ? "in_interface" : "out_interface"] =
    typed.interface || (own === null ? "eth0" : "lo");
  return packet;
}

function typed(name) {
  return form.elements[name].value.trim();
}

function hasPorts(packet) {
  return ["tcp", "udp", "sctp"].some((name) => data.protocols[name] === packet.protocol);
}

function line(tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  answer.append(made);
  return made;
}

function follow(event) {
  if (event) event.preventDefault();
  const packet = read();
  answer.replaceChildren();
  if (typeof packet === "string") {
    line("p", packet, "error");
    return;
  }
  const group = data.classes.find((each) => fits(each, packet));
  if (group === undefined) {
    line("p", "No class of this page has such packets: istio-iptables explain can tell.", "error");
    return;
  }
  const where = typed("destination");
  const port = hasPorts(packet) ? ` port ${packet.destination_port}` : "";
  const verdict = line("p", `${typed("protocol")} to ${where}${port}: `);
  verdict.append(Object.assign(document.createElement("strong"), { textContent: group.fate }));
  if (group.rule) line("p", `Decided by ${group.rule}: ${group.text}`, "mono");
  if (group.way !== undefined) {
    line("p", "The rules treat it like this example of the same class of packets:", "faint");
    line("pre", data.ways[group.way]).tabIndex = 0;
  }
}

form.addEventListener("submit", follow);
form.addEventListener("input", () => follow());
follow();
