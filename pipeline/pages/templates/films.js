// Films play while the pointer or the focus is on them; the mask keeps to the frame that is shown.
const still = matchMedia("(prefers-reduced-motion: reduce)"), allowed = document.getElementById("play");
for (const clip of document.querySelectorAll(".clip.moving")) {
  const video = clip.querySelector("video"), mask = clip.querySelector(".mask");
  const frames = Number(clip.dataset.frames), latents = Number(clip.style.getPropertyValue("--n"));
  const stride = latents > 1 ? Math.max(1, Math.ceil((frames - 1) / (latents - 1))) : 1;
  const draw = () => {
    if (!mask) return;
    const frame = Math.min(frames - 1, Math.floor((video.currentTime / (video.duration || 1)) * frames + 1e-3));
    const latent = latents > 1 ? Math.min(latents - 1, Math.ceil(frame / stride)) : 0;
    mask.style.transform = `translateX(${(-100 * latent) / latents}%)`;
  };
  const follow = () => { draw(); if (!video.paused) requestAnimationFrame(follow); };
  const start = () => video.play().catch(() => 0);
  const begin = () => { if (!still.matches && allowed?.checked !== false) start(); };
  const toggle = () => { if (video.paused) start(); else video.pause(); };
  video.addEventListener("play", follow);
  video.addEventListener("seeked", draw);
  clip.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") begin(); });
  clip.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") video.pause(); });
  video.addEventListener("focus", begin);
  video.addEventListener("blur", () => video.pause());
  video.addEventListener("click", () => { if (still.matches || !matchMedia("(hover: hover)").matches) toggle(); });
  video.addEventListener("keydown", (event) => { if (event.key === " ") { event.preventDefault(); toggle(); } });
}
