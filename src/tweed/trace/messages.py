"""Every sentence of a walk, in English and Chinese: the only place where ids of `tweed.trace.vocabulary` become words.

SENTENCES holds those of its WORDS, by kind and id, in the order of LANGUAGES; their {parameters} are what WORDS says. LABELS holds what
pages and figures write around them. A test checks that nothing is missing and that both languages use the same parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tweed.trace.result import Said, Say

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

SENTENCES: dict[str, dict[str, tuple[str, str]]] = {
    "decision": {
        "source-container": ("the container of {address} hands it to {device}", "{address} 的容器把它交给 {device}"),
        "source-host": ("leaves the host itself, {address}", "由主机自身 {address} 发出"),
        "source-namespace": ("leaves its container by {device}", "从容器的 {device} 发出"),
        "route-via": ("routed by {dst} (table {table}) to {device}, gateway {gateway}", "查路由表 {table}：{dst} 经网关 {gateway}，从 {device} 发出"),
        "route-connected": ("routed by {dst} (table {table}): directly on {device}", "查路由表 {table}：{dst} 直连，从 {device} 发出"),
        "route-local": ("{dst} is an address of this node (table {table})", "{dst} 是本机地址（表 {table}）"),
        "neighbour": ("{address} is at MAC {mac} ({state})", "{address} 的 MAC 是 {mac}（{state}）"),
        "neighbour-asked": ("{address} has no MAC yet: {device} will ask for it", "{address} 的 MAC 尚未解析：将在 {device} 上询问"),
        "neighbour-unknown": ("which MAC {address} has, no table of {device} says", "{device} 的表中没有 {address} 的 MAC"),
        "fdb": ("VTEP {mac} is on host {host}", "VTEP {mac} 位于主机 {host}"),
        "fdb-default": ("VTEP {mac} has no row of its own: the default row sends it to {host}", "VTEP {mac} 没有自己的表项：默认表项送往 {host}"),
        "fdb-unknown": ("which host VTEP {mac} is on, no table of {device} says", "{device} 的转发表没有说明 VTEP {mac} 在哪台主机"),
        "encapsulated": ("wrapped in VXLAN for {host}: VNI {vni}, UDP port {port}", "封装为 VXLAN 发往 {host}：VNI {vni}，UDP 端口 {port}"),
        "encapsulated-udp": ("wrapped in UDP for {host}, port {port}, by flannel's user space", "由 flannel 用户态封装为 UDP，发往 {host}，端口 {port}"),
        "underlay-via": ("host {host} is reached through {gateway} on {device} (table {table})", "主机 {host} 经网关 {gateway} 从 {device} 到达（表 {table}）"),
        "underlay-connected": ("host {host} is directly on {device} (table {table})", "主机 {host} 与 {device} 直连（表 {table}）"),
        "leaves-vxlan": ("leaves {device} for {host}, UDP destination port {port}", "从 {device} 发往 {host}，UDP 目的端口 {port}"),
        "leaves-vxlan-port-unknown": (
            "leaves {device} for {host}, UDP destination port unknown (flannel's default {default})",
            "从 {device} 发往 {host}，UDP 目的端口未知（flannel 默认 {default}）",
        ),
        "leaves-plain": ("leaves {device} for {host}, not in a tunnel", "从 {device} 发往 {host}，不经隧道"),
        "arrives-vxlan": ("arrives at {device}: UDP port {port} and VNI {vni} select the VTEP", "到达 {device}：UDP 端口 {port} 与 VNI {vni} 选定 VTEP"),
        "arrives-udp": ("arrives at {device}: UDP port {port} is flannel's", "到达 {device}：UDP 端口 {port} 属于 flannel"),
        "arrives-plain": ("arrives at {device}", "到达 {device}"),
        "decapsulated": ("unwrapped; the inner destination MAC {mac} is {device}'s own", "解封装；内层目的 MAC {mac} 正是 {device} 自己的"),
        "decapsulated-udp": ("unwrapped by flannel's user space, which writes it to {device}", "由 flannel 用户态解封装，写入 {device}"),
        "enters-bridge": ("enters bridge {bridge} by port {port}", "经端口 {port} 进入网桥 {bridge}"),
        "enters-bridge-port-unknown": ("enters bridge {bridge}, by which port is not in the tables", "进入网桥 {bridge}，表中未说明端口"),
        "bridge-port": ("bridge {bridge} has {mac} behind port {port}", "网桥 {bridge} 在端口 {port} 后有 {mac}"),
        "bridge-flood": ("bridge {bridge} has no row for {mac}: it goes out of every port", "网桥 {bridge} 没有 {mac} 的表项：向所有端口泛洪"),
        "bridge-unknown": ("behind which port of {bridge} {mac} is, no table says", "表中未说明 {mac} 在 {bridge} 的哪个端口后"),
        "into-container": ("goes into the container of {address} by {device}", "经 {device} 进入 {address} 的容器"),
        "delivered-host": ("delivered to the host: {address} on {device}", "交付主机：{device} 上的 {address}"),
        "delivered-container": ("delivered to the container: {address} is its own", "交付容器：{address} 是它自己的地址"),
        "ends-container-unknown": (
            "the container of {address} behind {device} is not in the tables: the walk ends",
            "表中没有 {device} 后 {address} 的容器：推演到此为止",
        ),
        "ends-device-kind": ("{device} is a {kind}, which this walk does not go through", "{device} 是 {kind}，推演不经过此类设备"),
        "ends-no-routes": ("no route table is here that could say where {dst} goes", "没有可以说明 {dst} 去向的路由表"),
        "ends-remote-unknown": ("goes to {address} by {device}; who that is, no table says", "从 {device} 发往 {address}；表中未说明那是谁"),
        "ends-source-elsewhere": ("no node of these tables has {address}", "这些表中没有任何节点拥有 {address}"),
        "ends-nexthop-object": ("the route's next hop is object {id}, which is not in the tables", "路由的下一跳是对象 {id}，表中没有它"),
        "ends-encap": (
            "{device} wraps it by the route's own encapsulation ({encap}), which is not followed here",
            "{device} 按路由自带的封装（{encap}）封装，此处不再跟踪",
        ),
        "ends-multicast": ("{device} sends it to the multicast group {group}", "{device} 将其发往组播组 {group}"),
    },
    "cause": {
        "route-missing": ("no route leads to {dst}", "没有通往 {dst} 的路由"),
        "route-blackhole": ("the blackhole route {prefix} swallows what goes to {dst}", "黑洞路由 {prefix} 吞掉了发往 {dst} 的包"),
        "route-unreachable": ("the route {prefix} says that {dst} is unreachable", "路由 {prefix} 声明 {dst} 不可达"),
        "route-prohibit": ("the route {prefix} prohibits {dst}", "路由 {prefix} 禁止访问 {dst}"),
        "route-dead": ("the route to {dst} is dead: {device} is down or has no carrier", "通往 {dst} 的路由已失效：{device} 未启用或无载波"),
        "route-wrong-node": ("the route {prefix} leads {dst} to host {host}, which does not have it", "路由 {prefix} 把 {dst} 引向主机 {host}，而它不在那里"),
        "routing-loop": ("the packet for {dst} comes back to {node}", "发往 {dst} 的包又回到了 {node}"),
        "rule-drops": ("a policy rule ({action}) stops what goes to {dst}", "策略规则（{action}）阻止了发往 {dst} 的包"),
        "device-down": ("{device} is down", "{device} 未启用"),
        "device-missing": ("there is no device {device}", "没有设备 {device}"),
        "neighbour-missing": ("{device} has no neighbour row for {address}", "{device} 没有 {address} 的邻居表项"),
        "neighbour-failed": ("the neighbour {address} on {device} is {state}", "{device} 上的邻居 {address} 处于 {state}"),
        "fdb-missing": ("{device} has no fdb row for {mac}: it does not know the host", "{device} 没有 {mac} 的转发表项：不知道在哪台主机"),
        "fdb-wrong-host": ("the fdb sends {mac} to {host}, it is on {right}", "转发表把 {mac} 送往 {host}，它实际在 {right}"),
        "fdb-own-host": ("the fdb sends {mac} to {host}, which is this node itself", "转发表把 {mac} 送往 {host}，那是本节点自己"),
        "vtep-mac-stale": (
            "the frame is for VTEP MAC {mac}, the peer's {device} has {right}: its kernel drops it",
            "帧发往 VTEP MAC {mac}，而对端 {device} 的 MAC 是 {right}：对端内核将其丢弃",
        ),
        "vtep-mac-duplicate": ("two nodes have the VTEP MAC {mac} on {device}", "两个节点的 {device} 使用同一 VTEP MAC {mac}"),
        "vni-mismatch": ("the packet has VNI {vni}, the peer's {device} listens for {right}", "包的 VNI 是 {vni}，对端 {device} 接收 {right}"),
        "port-mismatch": ("sent to UDP port {port}, the peer's {device} listens on {right}", "发往 UDP 端口 {port}，对端 {device} 监听 {right}"),
        "process-missing": ("no process reads {device}: flannel's user space does not run", "没有进程读取 {device}：flannel 用户态没有运行"),
        "port-closed": ("nothing listens on UDP port {port} of {host}", "{host} 的 UDP 端口 {port} 无人监听"),
        "vtep-missing": ("host {host} has no VTEP", "主机 {host} 没有 VTEP"),
        "local-not-ours": ("{device} sends from {local}, which is no address of this node", "{device} 的源地址 {local} 不是本节点的地址"),
        "encapsulation-loop": (
            "the way to {host} leads into {device} again: the tunnel would go through itself",
            "通往 {host} 的路又进入 {device}：隧道套住了自己",
        ),
        "underlay-neighbour-wrong": (
            "the frame for {address} goes to MAC {mac}, that host has {right}",
            "发给 {address} 的帧送往 MAC {mac}，该主机的 MAC 是 {right}",
        ),
        "underlay-source-dropped": (
            "the packet arrives at {device} from {address}, which is an address of that node itself",
            "包以 {address} 为源到达 {device}，而这是该节点自己的地址",
        ),
        "mtu-exceeded": (
            "{size} bytes do not fit {device}'s MTU of {mtu}, and the packet may not be cut",
            "{size} 字节超过 {device} 的 MTU {mtu}，且不允许分片",
        ),
        "rp-filter": (
            "rp_filter drops it: an answer to {src} would leave by {other}, not by {device}",
            "rp_filter 将其丢弃：给 {src} 的回应会从 {other} 而不是 {device} 发出",
        ),
        "forwarding-off": ("{device} does not forward: {key} is 0", "{device} 不转发：{key} 为 0"),
        "bridge-port-blocked": ("bridge port {port} is {state}", "网桥端口 {port} 处于 {state}"),
        "bridge-port-missing": ("no port of bridge {bridge} leads to {address}", "网桥 {bridge} 没有通往 {address} 的端口"),
        "bridge-fdb-wrong": ("the bridge has {mac} behind port {port}, it is behind {right}", "网桥认为 {mac} 在端口 {port} 之后，实际在 {right} 之后"),
        "bridge-port-isolated": (
            "{port} and {other} are both isolated ports: a bridge passes nothing between them",
            "{port} 与 {other} 都是隔离端口：网桥不在它们之间转发",
        ),
        "bridge-vlan": ("{port} is not in VLAN {vlan}: the bridge drops it", "{port} 不在 VLAN {vlan} 中：网桥将其丢弃"),
        "ttl-exceeded": ("the TTL runs out on the way to {dst}", "在到达 {dst} 之前 TTL 已耗尽"),
        "ipsec-blocks": ("an IPsec policy ({direction}) does not let it pass", "IPsec 策略（{direction}）不让它通过"),
        "ipsec-without-keys": ("an IPsec policy wants it encrypted, and the kernel has no key for that", "IPsec 策略要求加密，而内核没有相应的密钥"),
        "echo-ignored": ("{address} answers no echo request: {key} is 1", "{address} 不应答 echo 请求：{key} 为 1"),
        "detour": ("arrives, by way of {node}", "绕经 {node} 到达"),
        "rule-diverts": (
            "the policy rule of priority {priority} asks table {table} about {dst} before the table that has its route",
            "优先级 {priority} 的策略规则让 {dst} 先查表 {table}，而不是有其路由的表",
        ),
        "mtu-too-large": ("{device}'s MTU of {mtu} is too large: the tunnel has room for {room}", "{device} 的 MTU {mtu} 过大：隧道只容得下 {room}"),
        "local-wrong": ("{device} sends from {local}, the lease says {right}", "{device} 的源地址是 {local}，而租约是 {right}"),
        "vtep-mac-wrong": ("{device} has the MAC {mac}, its lease says {right}", "{device} 的 MAC 是 {mac}，而其租约是 {right}"),
        "underlay-route-wrong": ("`{way}` leads to host {host}, which is directly on {right}", "`{way}` 通往主机 {host}，而该主机直连在 {right} 上"),
        "route-throw": ("the throw route {prefix} keeps {dst} from this table's right route", "throw 路由 {prefix} 使 {dst} 用不上本表中的正确路由"),
        "route-leftover": ("`{way}` takes {dst} away from the right route", "`{way}` 抢走了本该走正确路由的 {dst}"),
        "gateway-wrong": ("packets go to gateway {gateway}, the node's bridge is {right}", "包发往网关 {gateway}，而节点的网桥是 {right}"),
        "address-missing": ("{device} has lost its address {address}", "{device} 丢失了地址 {address}"),
        "address-elsewhere": ("{device} has {address}, which is a container's on another node", "{device} 持有 {address}，而它属于另一节点上的容器"),
        "address-twice": ("two containers have {address}: {other} has it too", "两个容器都有 {address}：{other} 也有"),
        "vtep-second": ("{other} takes what arrives on UDP port {port} for {device}", "{other} 抢走了到达 UDP 端口 {port}、本该属于 {device} 的包"),
        "firewall-drops": ("a firewall rule ({hook}) drops it at {device}", "防火墙规则（{hook}）在 {device} 将其丢弃"),
        "kernel-drops": ("the kernel drops it at {device}: {reason} in {function}", "内核在 {device} 将其丢弃：{reason}，位于 {function}"),
        "vanished": ("nothing is seen of it after {device}", "过了 {device} 就再也看不到它"),
        "process-silent": (
            "the process between {device} and UDP port {port} has it and does not pass it on",
            "{device} 与 UDP 端口 {port} 之间的进程收下了它，却没有传下去",
        ),
        "no-answer": ("{address} gets it and does not answer", "{address} 收到了，但没有回应"),
        "source-replaced": ("its source {src} became {seen} at {device}", "它的源地址 {src} 在 {device} 变成了 {seen}"),
        "destination-replaced": ("a rule replaces its destination {dst} by {seen}", "规则把目的地址 {dst} 换成了 {seen}"),
        "bytes-differ": ("the frame at {device} is not the predicted one: {fields}", "{device} 上的帧与推演不同：{fields}"),
        "evaluation-differs": (
            "tweed's own mistake: for {question} it found `{ours}`, the kernel answers `{kernel}`",
            "tweed 自身的错误：{question} 推演为 `{ours}`，内核回答 `{kernel}`",
        ),
    },
    "blind": {
        "drops": ("where and why a packet is dropped: only that it is seen no more", "包在哪里、为何被丢弃：只能看到它不再出现"),
        "decisions": ("the kernel's own look-ups: decisions are read from tables and frames", "内核自己的查表：决定只能由表和帧推知"),
        "times-inside": ("times inside a node on the way in: a received frame keeps one time stamp", "接收方向上节点内部的时间：收到的帧只有一个时间戳"),
        "bursts": (
            "frames of UDP mode that are sent several at once: this kernel's tracepoints do not look into them",
            "UDP 模式下一次发出的多个帧：此内核的跟踪点看不进去",
        ),
        "everything-sent": ("whether a packet really goes this way: nothing was sent", "包是否真的这样走：没有发送任何包"),
        "other-machines": ("other machines: {nodes}", "其他机器：{nodes}"),
        "clock": (
            "one-way times to {machine} finer than {uncertainty}: its clock is {offset} from the sender's, give or take that",
            "到 {machine} 的单程时间不比 {uncertainty} 更精确：它的时钟与发送端相差 {offset}，误差在此之内",
        ),
        "clock-unknown": ("one-way times to {machine}: nothing came back from it to compare clocks by", "到 {machine} 的单程时间：没有返回的包可用于比对时钟"),
    },
    "loss": {
        "shorter-prefix": ("/{length} is shorter than /{winner}", "/{length} 短于 /{winner}"),
        "higher-metric": ("metric {metric} is higher than {winner}", "度量 {metric} 高于 {winner}"),
        "later-row": ("comes later, all else equal", "其余相同，排在后面"),
        "later-rule": ("table {table} is asked later", "表 {table} 查得较晚"),
        "dead": ("dead: {device} is down or has no carrier", "已失效：{device} 未启用或无载波"),
        "other-device": ("is about {device}", "属于 {device}"),
        "suppressed": ("the rule does not take a prefix as short as /{length}", "规则不接受短至 /{length} 的前缀"),
        "unused-mac": ("another MAC for {host}, no neighbour points to it", "{host} 的另一个 MAC，没有邻居指向它"),
        "other-branch": ("the other way of the same route", "同一路由的另一条路"),
        "other-vlan": ("is of VLAN {vlan}", "属于 VLAN {vlan}"),
        "other-table": ("is in another table", "在另一张表中"),
    },
    "assumption": {
        "default-rules": ("no `ip rule` is here: the kernel's three default rules are assumed", "没有 `ip rule`：按内核默认的三条规则推演"),
        "local-from-addresses": ("the local table is taken from the addresses", "local 表由地址推出"),
        "container-sends-to-gateway": ("a container's default route is assumed: by {device} to the bridge", "假定容器的默认路由：经 {device} 到网桥"),
        "container-same-subnet": ("both containers are assumed to reach each other directly over {device}", "假定两个容器经 {device} 直接互通"),
        "forwarding-on": ("forwarding is assumed to be on at {device}", "假定 {device} 已开启转发"),
        "device-is-vxlan": ("{device} is assumed to be a VXLAN device, by its rows or its name", "按表项或名称，假定 {device} 是 VXLAN 设备"),
        "device-is-bridge": ("{device} is assumed to be a bridge", "假定 {device} 是网桥"),
        "table-may-be-excerpt": ("the table {table} may be an excerpt", "{table} 表可能不完整"),
        "neighbour-device": ("the row of {address} names no device: {device} is assumed", "{address} 的表项没有设备名：假定为 {device}"),
        "neighbour-will-confirm": ("{state}: used now, confirmed by the kernel in passing", "{state}：先使用，内核随后确认"),
        "neighbour-will-ask": ("the kernel will ask for {address} first", "内核会先询问 {address}"),
        "bridge-vlans-ignored": ("VLAN rows of {bridge} do not count: it does not filter VLANs", "{bridge} 不做 VLAN 过滤，VLAN 表项不计"),
        "nft-not-evaluated": ("some of the firewall rules say more than is evaluated here", "部分防火墙规则的条件未参与推演"),
        "ipsec-not-evaluated": ("what this IPsec policy does with it is not evaluated: {policy}", "此 IPsec 策略的处理未参与推演：{policy}"),
        "rule-not-evaluated": ("the rule's selector `{selector}` is not evaluated", "规则的条件 `{selector}` 未参与推演"),
        "only-vtep": ("{device} is the only VTEP here", "{device} 是这里唯一的 VTEP"),
        "branch": ("way {number} of {count}, weight {weight}", "第 {number} 条路，共 {count} 条，权重 {weight}"),
        "copy": ("copy {number} of {count}", "第 {number} 份，共 {count} 份"),
        "fragmented": ("{size} bytes are cut to fit {device}'s MTU of {mtu}", "{size} 字节被分片以适应 {device} 的 MTU {mtu}"),
        "snat-possible": ("masquerading may replace the source {address}", "地址伪装可能替换源地址 {address}"),
        "container-end-unknown": ("the container of {address} is not in the tables", "表中没有 {address} 的容器"),
        "address-from-route": ("{address} is taken for a container behind {device}, since its route says so", "按路由，把 {address} 当作 {device} 后的容器"),
        "udp-remote-from-tables": (
            "which host has {address}, flannel's user space knows: taken from the other node's tables",
            "{address} 在哪台主机由 flannel 用户态掌握：取自另一节点的表",
        ),
    },
    "unknown": {
        "port": (
            "UDP port of {device} (flannel's default {default}; `ip -d link` shows it)",
            "{device} 的 UDP 端口（flannel 默认 {default}；可用 `ip -d link` 查看）",
        ),
        "vni": ("VNI of {device} (`ip -d link` shows it)", "{device} 的 VNI（可用 `ip -d link` 查看）"),
        "vtep-mac": ("{device}'s own MAC", "{device} 自己的 MAC"),
        "mtu": ("MTU of {device}", "{device} 的 MTU"),
        "underlay-neighbour": ("MAC of {address} on {device}", "{device} 上 {address} 的 MAC"),
        "source-address": ("source address at {device}", "{device} 上的源地址"),
        "source-mac": ("source MAC at {device}", "{device} 上的源 MAC"),
        "rp-filter": ("rp_filter of {device}", "{device} 的 rp_filter"),
        "container-mac": ("MAC of the container {address}", "容器 {address} 的 MAC"),
        "bridge-port": ("port of {bridge} that {address} is behind", "{address} 在 {bridge} 的哪个端口后"),
        "peer-tables": ("what host {host} does with it: its tables are not here", "主机 {host} 如何处理：没有它的表"),
    },
    "finding": {
        "fdb-stale": (
            "{device}: the fdb row {mac} -> {host} is a leftover: no neighbour points to it",
            "{device}：转发表项 {mac} -> {host} 是遗留：没有邻居指向它",
        ),
        "fdb-show-without-dev": (
            "`{command}` without `dev` lists the rows of all devices ({devices}); `bridge fdb show dev {device}` lists its own",
            "`{command}` 缺少 `dev`，列出了所有设备（{devices}）的表项；`bridge fdb show dev {device}` 只列它自己的",
        ),
        "prose-names-other-bridge": ("the text speaks of {named}, the containers are on {bridge}", "文中说的是 {named}，而容器在 {bridge} 上"),
        "bridge-outside-overlay": ("{bridge} ({prefix}) is outside the overlay, with {ports} on it", "{bridge}（{prefix}）在覆盖网络之外，其上有 {ports}"),
        "table-repeated": ("`{command}` is here twice with the same rows; the first is {first}", "`{command}` 出现了两次，内容相同；第一次在 {first}"),
        "vtep-mac-unknown": ("{device}'s own MAC is not in the tables: `{command}` shows it", "表中没有 {device} 自己的 MAC：`{command}` 可以看到"),
        "vni-unknown": ("{device}'s VNI is not in the tables: `{command}` shows it", "表中没有 {device} 的 VNI：`{command}` 可以看到"),
        "port-unknown": ("{device}'s UDP port is not in the tables: `{command}` shows it", "表中没有 {device} 的 UDP 端口：`{command}` 可以看到"),
        "mtu-unknown": ("the MTUs of {devices} are not in the tables: `{command}` shows them", "表中没有 {devices} 的 MTU：`{command}` 可以看到"),
        "underlay-neighbours-unknown": (
            "the neighbours on {devices} are not in the tables, so the outer destination MAC is unknown: `{command}` shows them",
            "表中没有 {devices} 上的邻居，外层目的 MAC 因此未知：`{command}` 可以看到",
        ),
        "neighbour-unused": ("{device}: no route leads to the neighbour {address}", "{device}：没有路由通向邻居 {address}"),
        "neighbour-without-fdb": (
            "{device}: the neighbour {address} has MAC {mac}, which no fdb row has",
            "{device}：邻居 {address} 的 MAC {mac} 没有转发表项",
        ),
        "gateway-without-neighbour": ("{device}: the gateway {address} has no neighbour row", "{device}：网关 {address} 没有邻居表项"),
        "vtep-mac-differs": (
            "the rows for host {host} have VTEP MAC {mac}, its device has {right}",
            "主机 {host} 的表项使用 VTEP MAC {mac}，而它的设备是 {right}",
        ),
        "vtep-mac-duplicate": ("the VTEP MAC {mac} is on several nodes: {nodes}", "多个节点使用同一 VTEP MAC {mac}：{nodes}"),
        "vni-differs": ("the nodes do not agree on the VNI: {vnis}", "各节点的 VNI 不一致：{vnis}"),
        "port-differs": ("the nodes do not agree on the UDP port: {ports}", "各节点的 UDP 端口不一致：{ports}"),
        "vtep-second": ("{device} and {other} share UDP port {port}", "{device} 与 {other} 共用 UDP 端口 {port}"),
        "mtu-too-large": ("{device}'s MTU {mtu} is too large: {underlay} has room for {room}", "{device} 的 MTU {mtu} 过大：{underlay} 只容得下 {room}"),
        "device-down": ("{device} is down", "{device} 未启用"),
        "forwarding-off": ("{key} is 0: this node does not forward", "{key} 为 0：该节点不转发"),
        "route-shadowed": ("this route never decides: {winner} always wins", "这条路由从不生效：{winner} 总是优先"),
        "subnet-twice": ("{prefix} is on several nodes: {nodes}", "多个节点拥有 {prefix}：{nodes}"),
        "fdb-two-hosts": ("{device}: {mac} has rows to several hosts: {hosts}", "{device}：{mac} 有指向多台主机的表项：{hosts}"),
        "lease-row-missing": ("no route leads to the lease of {subnet}", "没有通往租约 {subnet} 的路由"),
        "evaluation-differs": (
            "a mistake of tweed's own, please report it: to `{question}` it answers `{ours}`, the kernel `{kernel}`",
            "tweed 自身的错误，请报告：对 `{question}` 它回答 `{ours}`，内核回答 `{kernel}`",
        ),
        "nft-evidence": (
            "of the {lines} lines of firewall rules here those with plain matches are evaluated",
            "这里的 {lines} 行防火墙规则中，只有匹配条件简单的参与推演",
        ),
    },
}

LABELS: dict[str, tuple[str, str]] = {
    "delivered": ("delivered", "已送达"),
    "dropped": ("dropped", "被丢弃"),
    "lost": ("lost", "丢失"),
    "elsewhere": ("delivered elsewhere", "送到了别处"),
    "detour": ("delivered by a detour", "绕路送达"),
    "unknown": ("not known to the end", "无法推演到底"),
    "text": ("predicted from pasted tables", "由粘贴的表推演"),
    "tables": ("predicted from live tables", "由实时表推演"),
    "packet": ("observed with packet sockets", "用数据包套接字观察"),
    "bpf": ("observed with BPF tracepoints", "用 BPF 跟踪点观察"),
    "where": ("where", "位置"),
    "decided by": ("decided by", "依据"),
    "step": ("step {number}", "步骤 {number}"),
    "not": ("not", "落选"),
    "kernel agrees": ("the kernel was asked for {count} of these decisions, and answers the same", "其中 {count} 个决定向内核核实过，回答一致"),
    "more": ("and {count} more rows", "另有 {count} 行"),
    "assumed": ("assumed", "假定"),
    "not known": ("unknown", "未知"),
    "way": ("way {branch}", "路径 {branch}"),
    "the reply": ("The reply", "回应"),
    "the whole": ("A second packet, as large as the sender's MTU, not to be cut", "第二个包：与发送端 MTU 等大，禁止分片"),
    "same way": ("{size} bytes, the same way", "{size} 字节，路径相同"),
    "same way back": ("{size} bytes, the same way there and back", "{size} 字节，往返路径相同"),
    "not seen": ("not to be seen", "无法看到"),
    "differs": ("other than predicted", "与推演不同"),
    "cause": ("cause", "原因"),
    "evidence": ("evidence", "证据"),
    "fix": ("fix", "修复"),
    "findings": ("About the tables", "关于这些表"),
    "in": ("in", "入"),
    "out": ("out", "出"),
    "bytes": ("{size} bytes", "{size} 字节"),
    "layer": ("{size} bytes at {offset}", "{size} 字节，偏移 {offset}"),
    "added": ("{size} of them added by the tunnel", "其中 {size} 字节由隧道添加"),
    "fragment": ("fragment {number} of {count}", "分片 {number}/{count}"),
    "same": ("the same bytes as there", "字节与上一处相同"),
    "unknown fields": ("unknown: {fields}", "未知：{fields}"),
    "decode": ("decode the tunnel with", "解码隧道"),
    "example values": ("predicted: times only give the order, unknown bytes hold example values", "推演所得：时间只表示先后，未知字节为示例值"),
}

# What svg.WORDS has in English.
FIGURE_ZH = {
    "container": "容器",
    "bridge": "网桥",
    "vtep": "VTEP",
    "nic": "网卡",
    "on the wire": "线路上：{size} 字节",
    "inside": "容器的帧：{size} 字节",
    "added": "+{size} 字节",
    "outer": "外层",
    "inner": "内层",
    "bytes": "{size} 字节",
    "unknown": "未知",
    "more nodes": "另有 {count} 个节点",
    "of fragments": "{count} 个分片中的第一个",
}


def sayer(language: Language) -> Say:
    """What makes sentences of ids, in one language. An id or parameter that the table lacks is a KeyError."""
    place = LANGUAGES.index(language)

    def say(kind: str, said: Said) -> str:
        return SENTENCES[kind][said.id][place].format_map(said.params)

    return say


def label(language: Language, name: str, **values: object) -> str:
    return LABELS[name][LANGUAGES.index(language)].format_map(values)


def language_of(environment: Mapping[str, str]) -> Language:
    """The locale's language, as gettext looks for it: the first of these that is set decides."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environment.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"
